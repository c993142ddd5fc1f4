"""Tests of whole proxies, for behavior that no single package provides."""
