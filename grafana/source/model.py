"""Dashboards as Grafana's classic JSON (pure): https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/,
of the schema version that Grafana 10.0 wrote; later ones migrate it when they load it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from grafana.source.panels import BREAKER_STATES, COLOURS, COLUMNS, Dashboard, Kind, Panel

Json = dict[str, Any]

_SCHEMA_VERSION = 38
_TAG = "embedding-proxy"
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
# Each choice narrows the queries and the lists of the next variables.
_VARIABLES = {
    "job": "label_values(embedding_proxy_build_info, job)",
    "instance": 'label_values(embedding_proxy_build_info{job=~"$job"}, instance)',
    "model": 'label_values(embedding_proxy_items_total{job=~"$job"}, model)',
}
_LAST = {"calcs": ["lastNotNull"], "fields": "", "values": False}
_OPTIONS: Mapping[Kind, Json] = {
    "timeseries": {
        # A table would have the mean and the maximum, and the graph half the panel.
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {"reduceOptions": _LAST, "colorMode": "value", "graphMode": "none", "textMode": "auto"},
    "bargauge": {
        "reduceOptions": _LAST,
        "orientation": "horizontal",
        "displayMode": "basic",
        "showUnfilled": True,
        "text": {"titleSize": 14, "valueSize": 14},  # as large as fits, names of two instances had no room
    },
    "state-timeline": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "showValue": "auto",
        "mergeValues": True,
        "rowHeight": 0.8,
    },
    "table": {"showHeader": True},
}


def text_of(dashboard: Dashboard) -> str:
    return json.dumps(as_json(dashboard), indent=1) + "\n"


def as_json(dashboard: Dashboard) -> Json:
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": [_TAG],
        "schemaVersion": _SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timepicker": {},
        "fiscalYearStartMonth": 0,
        "weekStart": "",
        "links": [_LINK],
        "annotations": {"list": []},
        "templating": {"list": [_DATASOURCE_VARIABLE, *(_variable(*each) for each in _VARIABLES.items())]},
        "panels": list(_placed(dashboard)),
    }


# To the other dashboards of the tag, with the choices made and the time shown.
_LINK = {
    "type": "dashboards",
    "title": "Embedding proxy",
    "tags": [_TAG],
    "asDropdown": True,
    "includeVars": True,
    "keepTime": True,
    "targetBlank": False,
    "icon": "external link",
    "tooltip": "",
    "url": "",
}
_DATASOURCE_VARIABLE = {
    "name": "datasource",
    "label": "Data source",
    "type": "datasource",
    "query": "prometheus",
    "refresh": 1,
    "regex": "",
    "multi": False,
    "includeAll": False,
    "hide": 0,
}


def _variable(name: str, query: str) -> Json:
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": _DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": f"variable-{name}"},
        "refresh": 2,  # when the time range changes, too: an instance may be gone by now
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "hide": 0,
    }


def _placed(dashboard: Dashboard) -> Iterator[Json]:
    """The panels in their places, each row of the grid filled from the left."""
    number, y = 0, 0
    for title, panels in dashboard.rows.items():
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
            "panels": [],
        }
        x, y, height = 0, y + 1, 0
        for panel in panels:
            if x + panel.width > COLUMNS:
                x, y, height = 0, y + height, 0
            number += 1
            yield _panel(number, panel) | {"gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height}}
            x, height = x + panel.width, max(height, panel.height)
        y += height


def _panel(number: int, panel: Panel) -> Json:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _DATASOURCE,
        "targets": [_target(chr(ord("A") + place), panel, legend) for place, legend in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _field(panel), "overrides": _colours(panel)},
        "options": _OPTIONS[panel.kind],
    } | _transformed(panel.kind)


def _target(ref: str, panel: Panel, legend: str) -> Json:
    return {
        "refId": ref,
        "datasource": _DATASOURCE,
        "editorMode": "code",
        "expr": panel.queries[legend],
        "legendFormat": legend,
        "instant": panel.is_instant,
        "range": not panel.is_instant,
        "format": "table" if panel.kind == "table" else "time_series",
    }


def _field(panel: Panel) -> Json:
    steps = [{"value": value, "color": colour} for value, colour in panel.steps]
    field: Json = {
        "unit": panel.unit,
        "color": {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"},
        "thresholds": {"mode": "absolute", "steps": steps},
        "mappings": _mappings(panel.kind),
        "custom": _drawing(panel),
    }
    if panel.minimum is not None:
        field["min"] = panel.minimum
    if panel.maximum is not None:
        field["max"] = panel.maximum
    if panel.decimals is not None:
        field["decimals"] = panel.decimals
    return field


def _colours(panel: Panel) -> list[Json]:
    return [
        {
            "matcher": {"id": "byName", "options": value},
            "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
        }
        for label, colours in COLOURS.items()
        if f"{{{{{label}}}}}" in panel.queries
        for value, colour in colours.items()
    ]


def _mappings(kind: Kind) -> list[Json]:
    if kind != "state-timeline":
        return []
    states = {str(value): {"text": text, "color": colour} for value, (text, colour) in BREAKER_STATES.items()}
    return [{"type": "value", "options": states}]


def _drawing(panel: Panel) -> Json:
    match panel.kind:
        case "timeseries":
            return {
                "drawStyle": "line",
                "lineWidth": 1,
                "fillOpacity": 30 if panel.is_stacked else 0,
                "showPoints": "never",
                "stacking": {"mode": "normal" if panel.is_stacked else "none", "group": "A"},
                "thresholdsStyle": {"mode": "off" if len(panel.steps) == 1 else "dashed"},
            } | _axis(panel)
        case "state-timeline":
            return {"lineWidth": 0, "fillOpacity": 80}
        case "table":
            return {"align": "auto", "cellOptions": {"type": "auto"}}
    return {}


def _axis(panel: Panel) -> Json:
    """Where all is 0 Grafana's axis would end at 100, which is 10000 %: it ends at the last threshold, or low."""
    if panel.is_logarithmic:
        return {"scaleDistribution": {"type": "log", "log": 10}}
    if panel.unit == "percentunit" and panel.maximum is None:
        return {"axisSoftMax": panel.steps[-1][0]}
    if panel.unit in {"cps", "reqps", "ops"}:
        return {"axisSoftMax": 0.1}
    if panel.unit in {"short", "none"}:
        return {"axisSoftMax": panel.steps[-1][0] or 1}
    return {}


def _transformed(kind: Kind) -> Json:
    if kind != "table":
        return {}
    return {"transformations": [{"id": "organize", "options": {"excludeByName": {"Time": True, "Value": True}}}]}
