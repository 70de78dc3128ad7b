"""Renders an HTML table page, as FunctionBench's chameleon; keeps the catalogue it shows and the pages."""

import random
from collections import OrderedDict

import jinja2

from medes.runtimes.instance.checked_state import CheckedState, digest

PRODUCTS = 14_000
PAGES_MAX = 32
ADJECTIVES = ["small", "large", "red", "green", "quiet", "loud", "plain", "fancy", "cheap", "durable"]
NOUNS = ["lamp", "table", "chair", "kettle", "bicycle", "notebook", "pencil", "window", "carpet", "shelf"]
TEMPLATE = """<!doctype html>
<title>{{ title|e }}</title>
<table>
{%- for row in rows %}
<tr>{% for cell in row %}<td class="c{{ loop.index0 % 4 }}">{{ cell.name|e }} &middot; {{ "%.2f"|format(cell.price) }}</td>
{%- endfor %}</tr>
{%- else %}
<tr><td>nothing found</td></tr>
{%- endfor %}
</table>
<p>{{ rows|length }} rows, dearest {{ rows|sum(start=[])|map(attribute="price")|max|round(2) }}</p>
"""

state = CheckedState("html", buffer_bytes=1 << 20)
environment = jinja2.Environment(autoescape=True)
template = environment.from_string(TEMPLATE)
pages: OrderedDict[str, str] = OrderedDict()


def _products() -> list[dict]:
    generator = random.Random("products")
    return [
        {
            "name": f"{generator.choice(ADJECTIVES)} {generator.choice(NOUNS)} <{number}>",
            "price": round(generator.uniform(1, 900), 2),
            "tags": [generator.choice(ADJECTIVES) for _ in range(3)],
        }
        for number in range(PRODUCTS)
    ]


products = _products()


def handler(event, context):
    key = state.begin(event)
    generator = random.Random(int(event["seed"]))
    columns = max(1, min(int(event["columns"]), 50))
    rows = [generator.choices(products, k=columns) for _ in range(min(int(event["rows"]), 1000))]
    page = template.render(title=f"Catalogue {event['seed']}", rows=rows)
    if pages.get(key, page) != page:
        raise RuntimeError("the kept page differs")
    pages[key] = page
    while len(pages) > PAGES_MAX:
        pages.popitem(last=False)
    return state.finish(key, {"page": digest(page.encode()), "characters": len(page)})
