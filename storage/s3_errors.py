"""What boto3 raises, as the store's own errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from storage.s3_dialects import error_from
from storage.store import StoreError, StoreRefused, StoreUnavailable


@contextmanager
def mapped(what: str) -> Iterator[None]:
    """Turn boto3's errors into the store's; none of them leaves ``storage``."""
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        CredentialRetrievalError,
        NoCredentialsError,
        ParamValidationError,
        PartialCredentialsError,
        SSLError,
    )
    from botocore.parsers import ResponseParserError

    try:
        yield
    except StoreError:
        raise
    except ClientError as error:
        found = error.response.get("Error", {})
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        raise error_from(what, str(found.get("Code")), status, str(found.get("Message"))) from error
    except (NoCredentialsError, PartialCredentialsError, ParamValidationError) as error:
        raise StoreRefused(f"{what}: {error}") from error
    except SSLError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise StoreRefused(f"{what}: {error}; set ca= in the region's URL to trust it") from error
        raise StoreUnavailable(f"{what}: {error}") from error
    except (BotoCoreError, CredentialRetrievalError, ResponseParserError, OSError) as error:
        raise StoreUnavailable(f"{what}: {error}") from error
