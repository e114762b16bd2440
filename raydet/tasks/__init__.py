"""Tasks: what a model has to learn, how its predictions become metrics, and what a fair comparison needs."""
