"""Measurements. Each prints ratios of one run, and whether they meet the goals that the project has set itself."""
