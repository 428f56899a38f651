"""How good masks are: metrics and plots."""
