"""Values for the manifests of cluster/, and their Python files on the path."""

from __future__ import annotations

import sys
from pathlib import Path

CLUSTER = Path(__file__).parents[3] / "cluster"
sys.path[:0] = [str(CLUSTER), str(CLUSTER / "launcher")]  # as `PYTHONPATH=cluster/launcher ray up`

DIGEST = "@sha256:" + "0123456789abcdef" * 4

VALUES = {
    "RAYDET_IMAGE": f"123456789012.dkr.ecr.eu-west-1.amazonaws.com/raydet{DIGEST}",
    "RAYDET_BUCKET": "our-bucket",
    "RAYDET_NFS": "10.0.0.2:/raydet",
    "RAYDET_SSH_KEY": "~/.ssh/raydet.pem",
    "RAYDET_SSH_PUBLIC_KEY": "ssh-ed25519 AAAAC3Nza raydet",
    "RAYDET_AWS_ACCOUNT": "123456789012",
    "RAYDET_AWS_REGION": "eu-west-1",
    "RAYDET_AWS_AMI": "ami-0123456789abcdef0",
    "RAYDET_AWS_KEY_NAME": "raydet",
    "RAYDET_AWS_SUBNET": "subnet-0123456789abcdef0",
    "RAYDET_AWS_SECURITY_GROUP": "sg-0123456789abcdef0",
    "RAYDET_GCP_PROJECT": "our-project",
    "RAYDET_GCP_REGION": "us-central1",
    "RAYDET_GCP_ZONE": "us-central1-a",
    "RAYDET_GCP_SUBNET": "raydet",
    "RAYDET_GCP_VM_SOURCE": "projects/deeplearning-platform-release/global/images/some-image",
    "RAYDET_BUCKET_URI": "gs://our-bucket",
    "RAYDET_DATA": "gs://our-bucket/data/flir",
    "RAYDET_POSTGRES_IMAGE": f"postgres{DIGEST}",
    "RAYDET_REDIS_IMAGE": f"redis{DIGEST}",
    "RAYDET_SHARED_STORAGE_CLASS": "standard-rwx",
    "RAYDET_IDENTITY_KEY": "iam.gke.io/gcp-service-account",
    "RAYDET_IDENTITY_VALUE": "raydet-worker@our-project.iam.gserviceaccount.com",
    "RAYDET_MLFLOW_IDENTITY_VALUE": "raydet-head@our-project.iam.gserviceaccount.com",
    "RAYDET_GPU_KEY": "cloud.google.com/gke-accelerator",
    "RAYDET_GPU_VALUE": "nvidia-tesla-a100",
    "RAYDET_SPOT_KEY": "cloud.google.com/gke-spot",
    "RAYDET_SPOT_VALUE": "true",
}
