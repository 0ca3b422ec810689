#!/usr/bin/env bash
# Train a policy for a mesh and let the running mesh use it: examples/add_policy.sh PROFILE QUALITY [OPTION...]
# PROFILE and QUALITY are files or shipped names; options go to `tiercel train` (--devices, --deadline-s, --budget-s).
set -euo pipefail
snapshot=$(mktemp -d)/policy.safetensors
tiercel train --profile "$1" --quality "$2" --out "$snapshot" "${@:3}"
version=$(tiercel policy publish "$snapshot" --json | python -c 'import json, sys; print(json.load(sys.stdin)["policy_version"])')
tiercel policy show "$version"
# The trainer simulates it beside the active policy; the mesh uses it if it is no worse, and keeps what it has if it is.
if tiercel policy promote "$version"; then
    tiercel policy list
    # By hand, without the gate: back to a policy that needs no training.
    tiercel policy use price
fi
