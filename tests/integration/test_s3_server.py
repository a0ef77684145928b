"""The S3 server of the tests keeps what the other tests rest on: conditions, checksums, and its objects."""

from __future__ import annotations

import base64
import hashlib

import pytest
from botocore.exceptions import ClientError
from fix_s3 import S3Server


def test_objects_survive_a_kill_of_the_s3_server(own_s3_server: S3Server) -> None:
    bucket = own_s3_server.make_bucket("survivors")
    own_s3_server.client().put_object(Bucket=bucket, Key="a/b", Body=b"kept")
    own_s3_server.kill()
    own_s3_server.start()
    assert own_s3_server.client().get_object(Bucket=bucket, Key="a/b")["Body"].read() == b"kept"


def test_the_s3_server_refuses_a_second_create_and_a_wrong_digest(s3_server: S3Server) -> None:
    client = s3_server.client()
    bucket = s3_server.make_bucket("conditions")
    client.put_object(Bucket=bucket, Key="one", Body=b"1", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=bucket, Key="one", Body=b"2", IfNoneMatch="*")
    wrong = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    with pytest.raises(ClientError, match="BadDigest"):
        client.put_object(Bucket=bucket, Key="two", Body=b"2", ChecksumSHA256=wrong)
