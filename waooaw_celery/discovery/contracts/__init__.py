"""Contracts: the JSON Schemas of the parameters and the results of methods."""
