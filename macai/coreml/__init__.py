"""MLX function to Core ML package: trace, graph, passes, lower, package."""
