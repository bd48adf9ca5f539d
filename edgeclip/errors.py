"""Every exception that edgeclip raises on purpose.

Each message says what was expected, what was got and what to do, in one sentence; the command line prints it
and exits with the class's ``exit_code``.

::

    EdgeclipError
     ├─ InputError               what the caller passed cannot be used
     │   ├─ SourceError          an image, folder, video or camera cannot be read
     │   ├─ PromptError          class names or prompt templates are unusable
     │   └─ RecipeError          a training recipe is invalid
     ├─ BundleError              a bundle cannot be trusted or used
     │   ├─ ManifestError        manifest.json is absent, malformed or of an unknown schema
     │   ├─ IntegrityError       a file is missing, unlisted or does not match its sha256
     │   ├─ TableError           a prompt table is absent, or of another width or model
     │   └─ VariantError         the variant asked for is not there or cannot run here
     ├─ ModelError               a model cannot be found, loaded or described
     │   └─ LintError            a graph holds what TensorRT refuses
     ├─ ParityError              an exported graph disagrees with the model it came from
     ├─ EngineError              an inference engine failed to load or run
     ├─ TrainingError            training cannot go on (no data, a loss that is not finite)
     └─ MissingExtraError        an optional dependency is not installed
"""


class EdgeclipError(Exception):
    """Base of all edgeclip errors; ``exit_code`` is what the command line returns."""

    exit_code = 2


class InputError(EdgeclipError):
    """What the caller passed cannot be used."""


class SourceError(InputError):
    """An image, folder, video or camera cannot be read."""


class PromptError(InputError):
    """Class names or prompt templates are unusable."""


class RecipeError(InputError):
    """A training recipe is invalid."""


class BundleError(EdgeclipError):
    """A bundle cannot be trusted or used."""


class ManifestError(BundleError):
    """manifest.json is absent, malformed or of an unknown schema."""


class IntegrityError(BundleError):
    """A file of the bundle is missing, unlisted or does not match its sha256."""


class TableError(BundleError):
    """A prompt table is absent, or was made for another width or model."""


class VariantError(BundleError):
    """The variant asked for is not in the bundle or cannot run here."""


class ModelError(EdgeclipError):
    """A model cannot be found, loaded or described."""


class LintError(ModelError):
    """A graph holds what TensorRT refuses; the message lists what and where."""


class ParityError(EdgeclipError):
    """An exported graph disagrees with the model it came from."""


class EngineError(EdgeclipError):
    """An inference engine failed to load or run."""


class TrainingError(EdgeclipError):
    """Training cannot go on: no usable data, or a loss that is not finite."""


class MissingExtraError(EdgeclipError):
    """An optional dependency is not installed; the message names the command that installs it."""
