"""Grafana's dashboard: its panels as data, and what Grafana reads, built from them."""
