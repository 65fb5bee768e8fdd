"""The error tree of SplitRT.

- ``SplitError``: everything that is the user's, the peer's or the environment's doing
    - ``CompileError``: a model cannot be compiled
        - ``TraceError``: the model could not be read or traced
        - ``CutError``: a cut does not exist or was refused
        - ``EmitError``: a segment could not be written, or its parity failed
    - ``EngineError``: an engine cannot be built, loaded or run
        - ``BuildError``, ``TensorMismatchError``
        - ``IncompatibleError``, of which ``MissingPlanError`` is one kind
    - ``BundleError``: a bundle cannot be opened
        - ``ManifestError``, ``DigestError``
    - ``CodecError``: bytes that a codec cannot encode or decode
    - ``LinkError``: the other end of the wire
        - ``ConnectError``, ``DeadlineError``
        - ``LocalProtocolError``: this program misused the protocol
        - ``RemoteProtocolError``: the peer broke the protocol
    - ``SourceError``: an input source (image, folder, video, camera, npz) cannot be read
    - ``SensorError``: a power sensor cannot be read
    - ``UnansweredError``: the server is gone and this robot may not run the whole model
    - ``DeployError``: a bundle could not be put in its place

A bug of SplitRT is an ``AssertionError``, never a ``SplitError``. A message says, in one line,
what, where, what was expected, what was given and what to do next.
"""

from __future__ import annotations

__all__ = [
    "BuildError",
    "BundleError",
    "CodecError",
    "CompileError",
    "ConnectError",
    "CutError",
    "DeadlineError",
    "DeployError",
    "DigestError",
    "EmitError",
    "EngineError",
    "IncompatibleError",
    "LinkError",
    "LocalProtocolError",
    "ManifestError",
    "MissingPlanError",
    "RemoteProtocolError",
    "SensorError",
    "SourceError",
    "SplitError",
    "TensorMismatchError",
    "TraceError",
    "UnansweredError",
]


class SplitError(Exception):
    """Base of every error that a user can cause or mend."""


class CompileError(SplitError):
    """A model cannot be compiled."""


class TraceError(CompileError):
    """A model could not be read or traced."""


class CutError(CompileError):
    """A cut does not exist, or was refused."""


class EmitError(CompileError):
    """A segment could not be written, or its parity with the model failed."""


class EngineError(SplitError):
    """An engine cannot be built, loaded or run."""


class BuildError(EngineError):
    """A backend could not build an engine."""


class IncompatibleError(EngineError):
    """A plan or a backend does not fit this device."""


class MissingPlanError(IncompatibleError):
    """There is no plan of this graph for this device; a half without one stays a chain."""


class TensorMismatchError(EngineError):
    """A tensor's name, dtype or shape is not what the engine takes."""


class BundleError(SplitError):
    """A bundle cannot be opened."""


class ManifestError(BundleError):
    """A manifest is missing, malformed or of another schema."""


class DigestError(BundleError):
    """A file of a bundle is missing or is not the file that was compiled."""


class CodecError(SplitError):
    """Bytes that a codec cannot encode or decode."""


class LinkError(SplitError):
    """The other end of the wire cannot be used."""


class ConnectError(LinkError):
    """No connection could be made, or the handshake was refused."""


class DeadlineError(LinkError):
    """The peer did not make progress in the time it was given."""


class LocalProtocolError(LinkError):
    """This program misused the protocol."""


class RemoteProtocolError(LinkError):
    """The peer broke the protocol."""


class SourceError(SplitError):
    """An input source cannot be read."""


class SensorError(SplitError):
    """A power sensor cannot be read."""


class UnansweredError(SplitError):
    """The server is gone, and this robot may not run the whole model by itself."""


class DeployError(SplitError):
    """A bundle could not be put in its place."""
