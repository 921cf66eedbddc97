"""What OPQN is compared with: other quantizers and plain search, each behind the same two calls, encode and lookup."""
