"""Where profiles meet artefacts: workspace, cells, grid. Import from its modules; the package loads none."""
