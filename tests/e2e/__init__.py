"""Promises that no single package keeps, tested through whole proxies."""
