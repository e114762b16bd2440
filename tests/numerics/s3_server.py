"""An S3 server (moto's) on the loopback: `python s3_server.py PORT DIRECTORY`, whose files are the objects of a bucket.

What is put later stays in memory: a server that is killed comes back with what its directory holds by then.
"""

from __future__ import annotations

import sys
from pathlib import Path

from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

BUCKET = "images"


def main(port: int, directory: Path) -> None:
    """Serve until killed."""
    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    backend.create_bucket(BUCKET, "us-east-1")
    for path in directory.rglob("*"):
        if path.is_file():
            backend.put_object(BUCKET, path.relative_to(directory).as_posix(), path.read_bytes())
    run_simple("127.0.0.1", port, DomainDispatcherApplication(create_backend_app), threaded=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
