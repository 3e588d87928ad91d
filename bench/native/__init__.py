"""Checks that only a card can make: run by `make gpu`, and with few elements wherever the benches are."""
