"""The metrics of the whole fleet, for `waooaw exporter`: one module for each topic that is read."""
