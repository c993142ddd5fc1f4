"""Where the dashboards' JSON comes from: a file for each dashboard, in the words of panels.py and promql.py."""

from grafana.source.clients import CLIENTS
from grafana.source.fleet import FLEET
from grafana.source.overview import OVERVIEW
from grafana.source.store import STORE
from grafana.source.upstream import UPSTREAM

DASHBOARDS = (OVERVIEW, CLIENTS, UPSTREAM, STORE, FLEET)
