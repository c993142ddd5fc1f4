"""Shared test support: servers, clients, emulators, random loads."""
