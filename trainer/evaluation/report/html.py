"""Pages that stand alone: style and plots are inside, nothing is fetched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jinja2

from trainer.evaluation.report.style import PAGE_COLORS, TIER_COLORS


def render(
    package: str, template: str, *, filters: Mapping[str, Callable[..., str]], **facts: Any
) -> str:
    """Fills a template, which may extend the skeleton ``page.html.jinja`` that lies here.

    Args:
        package: Package whose folder ``templates`` holds the template.
        template: Its name.
        filters: Filters it uses.
        facts: What it shows; text in it is escaped.
    """
    places = [jinja2.PackageLoader(each) for each in dict.fromkeys((package, __package__))]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(places), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(filters)
    environment.globals |= {"page_colors": PAGE_COLORS, "tier_colors": TIER_COLORS}
    return environment.get_template(template).render(facts)
