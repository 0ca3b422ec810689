#!/usr/bin/env bash
# Bring a Triton of your own into a running mesh: examples/own_triton.sh ADDRESS TIER=MODEL...
# ADDRESS is Triton's gRPC address, on this machine or one that `mesh.endpoint_addresses` allows. TIER is a tier that the mesh has
# (small, medium, large with `tiercel up`). MODEL is a model there with the inputs and outputs of deploy/triton/paced/config.pbtxt,
# or one of Triton's vLLM backend (deploy/triton/production). It gets traffic once it answers that it is ready.
set -euo pipefail
address=$1
shift
tiercel endpoint add own-triton "$address" "${@/#/--tier=}"
tiercel endpoint list
# Out again: it finishes what it has and gets nothing new.
tiercel endpoint remove own-triton
