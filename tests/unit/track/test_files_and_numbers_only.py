"""The door to MLflow lets files and numbers through: no model flavour is logged, nothing is loaded back."""

from __future__ import annotations

import ast
from pathlib import Path

DOOR = Path(__file__).parents[3] / "raydet" / "track" / "mlflow.py"
IMPORTED = {"mlflow.MlflowClient", "mlflow.exceptions.MlflowException"}
IMPORTED |= {f"mlflow.entities.{name}" for name in ("Metric", "Param", "Run", "RunTag", "ViewType")}
ASKED = {
    "create_experiment",
    "create_run",
    "delete_run",
    "get_experiment_by_name",
    "get_metric_history",
    "get_run",
    "log_artifact",
    "log_batch",
    "log_text",
    "search_runs",
    "set_experiment_tag",
    "set_tag",
    "set_terminated",
    "update_run",
}
"""What of the client is used. Nothing here takes a model, and nothing brings a file of the server's to this machine."""

TREE = ast.parse(DOOR.read_text())


def test_nothing_else_is_imported_from_mlflow() -> None:
    imported = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(TREE)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    plain = {alias.name for node in ast.walk(TREE) if isinstance(node, ast.Import) for alias in node.names}
    assert {name for name in imported if name.startswith("mlflow")} == IMPORTED
    # A number of theirs is set there: how often a database that refuses is asked again.
    assert {name for name in plain if name.split(".")[0] in {"mlflow", "importlib"}} == {
        "mlflow.store.db.utils"
    }


def test_the_client_is_asked_for_nothing_else() -> None:
    asked = {
        node.attr
        for node in ast.walk(TREE)
        if isinstance(node, ast.Attribute)
        and (
            (isinstance(node.value, ast.Attribute) and node.value.attr == "_client")
            or (isinstance(node.value, ast.Name) and node.value.id == "client")
        )
    }
    assert asked == ASKED
