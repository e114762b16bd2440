"""Training and evaluation of a run, in one process of its workers. Knows neither Ray nor MLflow."""
