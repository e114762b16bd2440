"""The MLflow tracker handles files and numbers only: it logs no model flavours and loads nothing back."""

from __future__ import annotations

import ast
from pathlib import Path

MODULE = Path(__file__).parents[3] / "raydet" / "track" / "mlflow.py"
IMPORTED = {"mlflow.MlflowClient", "mlflow.exceptions.MlflowException"}
ENTITIES = ("Dataset", "DatasetInput", "InputTag", "LoggedModel", "LoggedModelOutput", "LoggedModelStatus")
ENTITIES += ("Metric", "Param", "Run", "RunTag", "ViewType")
IMPORTED |= {f"mlflow.entities.{name}" for name in ENTITIES}
CALLED = {
    "create_experiment",
    "create_logged_model",
    "create_run",
    "delete_logged_model",
    "delete_run",
    "finalize_logged_model",
    "get_experiment_by_name",
    "get_metric_history",
    "get_run",
    "log_artifact",
    "log_batch",
    "log_inputs",
    "log_model_artifacts",
    "log_outputs",
    "log_text",
    "search_logged_models",
    "search_runs",
    "set_experiment_tag",
    "set_logged_model_tags",
    "set_tag",
    "set_terminated",
    "update_run",
}
"""Methods of the client in use: none logs a model of a flavour, none loads one, none downloads a file."""

TREE = ast.parse(MODULE.read_text())


def test_nothing_else_is_imported_from_mlflow() -> None:
    imported = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(TREE)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    plain = {alias.name for node in ast.walk(TREE) if isinstance(node, ast.Import) for alias in node.names}
    assert {name for name in imported if name.startswith("mlflow")} == IMPORTED
    # MLflow's number of retries for a failing database is set there.
    assert {name for name in plain if name.split(".")[0] in {"mlflow", "importlib"}} == {
        "mlflow.store.db.utils"
    }


def test_no_other_methods_of_the_client_are_called() -> None:
    called = {
        node.attr
        for node in ast.walk(TREE)
        if isinstance(node, ast.Attribute)
        and (
            (isinstance(node.value, ast.Attribute) and node.value.attr == "_client")
            or (isinstance(node.value, ast.Name) and node.value.id == "client")
        )
    }
    assert called == CALLED
