"""What tzn survives and how far it scales: the programs behind docs/reliability.md."""
