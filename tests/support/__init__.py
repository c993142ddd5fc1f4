"""What several tests need: servers, clients, emulators, random loads."""
