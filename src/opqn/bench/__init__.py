"""The benchmarks behind the README's tables: each prints its figures as a table or as JSON, and names its command."""
