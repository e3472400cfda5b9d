"""Every error that a user can meet, in one tree.

    FlopsError                  code, cause, cure, where
    ├── SpecError               FL1xxx  an SLA, mock data or operator file that cannot be accepted
    ├── SourceError             FL2xxx  Git: repositories, refs, ML repos
    ├── BuildError              FL3xxx  environments: dependencies, interpreters, locks
    ├── DataError               FL4xxx  datasets: fetching, checking, sharding
    ├── TrainingError           FL5xxx  federated learning: the ML repo's code, learners, quorum
    ├── TrackingError           FL6xxx  MLflow: server, runs, registry, gate
    ├── ImageError              FL61xx  images: build plans, base images, layers, registries
    ├── ServingError            FL7xxx  runtimes and inference: ports, health, verification
    ├── StatusError             FL8xxx  the status branch
    ├── WebError                FL93xx  webhooks and the web server
    ├── NotifyError             FL94xx  telling people outside of Git: forges, webhooks of ours
    ├── SecretError             FL95xx, FL96xx  secrets that settings and SLAs refer to
    └── ControllerError         FL9xxx  the loop, the journal, the disk

Every code has one line in `CODES`; `docs/errors.md` is made from it. An error says what happened (`cause`), what to do
(`cure`) and, where there is a file behind it, where (`where`). `transient` errors are retried with backoff, the others
wait for new content (`Stalled`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CODES: dict[str, str] = {
    # --- FL1xxx spec
    "FL1001": "the file is too large",
    "FL1002": "the file is not UTF-8",
    "FL1003": "a control character",
    "FL1004": "the file is empty",
    "FL1005": "not valid YAML or JSON",
    "FL1006": "more than one document",
    "FL1007": "anchors, aliases and merge keys",
    "FL1008": "tags",
    "FL1009": "nested too deep",
    "FL1010": "a word that YAML 1.1 reads as true or false",
    "FL1011": "a number that starts with a zero",
    "FL1012": "a number to the base 60",
    "FL1013": "a date without quotes",
    "FL1014": "a number in a form on which parsers differ",
    "FL1015": "a number that is not finite",
    "FL1016": "a key that is not a word",
    "FL1017": "a key that stands twice",
    "FL1018": "a number with too many digits",
    "FL1020": "the file is not a mapping",
    "FL1021": "an unknown key",
    "FL1022": "a missing key",
    "FL1023": "a value that is not one of those allowed",
    "FL1024": "a value that breaks a rule",
    "FL1025": "a value of the wrong type",
    "FL1026": "a value outside its limits",
    "FL1031": "a dependency that does not exist",
    "FL1032": "dependencies in a circle",
    "FL1033": "a file that cannot be read",
    "FL1034": "several SLAs in one project",
    "FL1035": "a name that no project may have",
    "FL1036": "a Git repo of the reconciler's own machine",
    "FL1041": "a build plan whose name and kind differ",
    "FL1042": "a base image that the operator does not allow",
    "FL1044": "a build plan that is of no kind",
    "FL1701": "a customer that may not have projects",
    "FL1702": "an ML repo that is not allowed",
    "FL1703": "a data tag that is not allowed",
    "FL1704": "an environment variable that is not allowed",
    "FL1705": "a customer that may not deploy",
    "FL1706": "more than one project may have",
    "FL1707": "more than a customer may have",
    "FL1710": "no commit that is signed by an allowed key",
    "FL1711": "the keys that may sign commits are not there",
    # --- FL2xxx source
    "FL2001": "a Git command failed",
    "FL2002": "a Git command took too long",
    "FL2003": "a ref, URL or path that Git could take for an option",
    "FL2004": "a Git object that is not there",
    "FL2005": "not a Git repo",
    "FL2006": "the remote cannot be fetched",
    "FL2007": "there is no such revision",
    "FL2008": "there is no such branch",
    "FL2009": "too much in a repo to list",
    "FL2010": "a symbolic link",
    "FL2011": "a submodule",
    "FL2012": "a file name that is refused",
    "FL2013": "a declaring file that is too large",
    "FL2014": "no such project in the history",
    "FL2015": "changes that are not committed",
    "FL2016": "the project did not exist then",
    "FL2017": "nothing to revert",
    "FL2018": "a repo without any branch",
    "FL2019": "HEAD is not on a branch",
    "FL2020": "the ML repo cannot be fetched",
    "FL2021": "there is no such folder in the ML repo",
    "FL2022": "the ML repo lacks a file of the contract",
    "FL2023": "the ML repo declares no dependencies",
    "FL2024": "the ML repo is too large",
    "FL2025": "the ML repo has no such branch, tag or commit",
    "FL2026": "the ML repo is empty",
    "FL2027": "the ML repo cannot be written to the cache",
    "FL2028": "projects is not a folder",
    # --- FL3xxx environments
    "FL3001": "not a requirement",
    "FL3002": "a requirement that does not come from the package index",
    "FL3003": "the ML repo declares no dependencies",
    "FL3004": "a dependency file that cannot be parsed",
    "FL3005": "a conda file without dependencies",
    "FL3006": "an entry of a conda file that is neither a package nor a pip list",
    "FL3007": "an included requirements file outside the ML repo",
    "FL3010": "no Python that can be used",
    "FL3011": "a package or version that does not exist",
    "FL3012": "a package without a wheel",
    "FL3013": "the package index does not answer",
    "FL3014": "dependencies that do not go together",
    "FL3015": "the environment cannot be built",
    "FL3016": "the disk is full while an environment is built",
    "FL3017": "no file of a package has an allowed hash",
    "FL3018": "no build of PyTorch for the CPU",
    # --- FL4xxx data
    "FL4001": "the SLA selects no data",
    "FL4002": "MNIST cannot be fetched",
    "FL4003": "no data has that tag",
    "FL4004": "too few partitions or rows for the learners",
    "FL4005": "the disk is full while a dataset is written",
    "FL4006": "there is no such dataset",
    "FL4007": "a data directory without rows to learn from",
    "FL4008": "a data directory that does not exist",
    "FL4009": "a data file that is a link or no regular file",
    "FL4010": "a data file that cannot be read",
    "FL4011": "data files with different columns",
    "FL4012": "data that cannot be put together",
    "FL4013": "a column that a dataset cannot hold",
    "FL4014": "data that changed while they were read",
    "FL4015": "another process makes the same dataset",
    "FL4016": "the data cache cannot be used",
    "FL4017": "a shipped dataset that is not the known one",
    "FL4501": "a node has no data with a run's tags",
    "FL4502": "a dataset of a node that cannot be named so, or is not there",
    "FL4503": "a node's catalogue of datasets cannot be used",
    "FL4504": "too few rows on a node for its learners",
    # --- FL5xxx training
    "FL5001": "The training was cancelled.",
    "FL5002": "The training process could not be started, or ended without a result.",
    "FL5003": "There is no such strategy.",
    "FL5004": "The strategy does not take an argument, or lacks one, or refuses its value.",
    "FL5010": "The ML repo lacks model_manager.py or data_manager.py.",
    "FL5011": "ModelManager is not there or lacks a method.",
    "FL5012": "The ML repo's modules cannot be imported.",
    "FL5013": "ModelManager() raised.",
    "FL5014": "set_model_data raised.",
    "FL5015": "fit_model raised.",
    "FL5016": "evaluate_model raised.",
    "FL5017": "A method of ModelManager returned something else than the contract asks for.",
    "FL5018": "get_model_parameters or set_model_parameters raised.",
    "FL5020": "A learner process died.",
    "FL5021": "A learner took longer than the round's time limit.",
    "FL5022": "A learner exceeded its memory limit.",
    "FL5023": "The ML repo's code wrote outside its directory.",
    "FL5024": "The ML repo's code tried to use the network.",
    "FL5030": "Too few learners are left: the quorum is not met.",
    "FL5031": "The strategy could not aggregate the learners' answers.",
    "FL5032": "The aggregated parameters are not finite.",
    "FL5033": "The learners do not report the metric that chooses the best model.",
    "FL5034": "There are fewer learners than the training configuration asks for.",
    "FL5040": "The trained model could not be written.",
    "FL5042": "There is no space for the training's files.",
    "FL5501": "Parameters do not come back from ModelManager as they were set.",
    "FL5502": "Training changes the number or the shapes of the parameters.",
    "FL5503": "A method of ModelManager does not return on a small sample.",
    "FL5504": "The process that checks the ML repo ended.",
    "FL5510": "The engine that runs the learners' containers fails.",
    "FL5511": "A container of a training run does not come up.",
    "FL5901": "The Keras model cannot be loaded from what was saved.",
    "FL5902": "The saved model answers otherwise than the trained one.",
    "FL5090": "A stage was run before those that it stands on.",
    # --- FL56xx hierarchies
    "FL5601": "No cluster has enough learners.",
    "FL5603": "A cluster aggregator failed or died.",
    "FL5604": "An aggregator asks for a container that its training run does not have.",
    "FL5605": "A container of a training run was ended from outside.",
    # --- FL57xx guards, privacy, simulation, partitions
    "FL5701": "A learner's update is not finite.",
    "FL5702": "A learner's update has other shapes than what it was sent.",
    "FL5703": "Flower refuses the settings of differential privacy.",
    "FL5710": "The data have no column of labels to deal them by.",
    "FL5711": "The data cannot be dealt so that every learner has enough rows.",
    "FL5720": "what a node says of its held-out rows cannot be",
    "FL5721": "a file of nodes/ that is not valid",
    # --- FL58xx federations of nodes
    "FL5801": "the SuperLink does not answer",
    "FL5802": "the SuperLink refuses a request",
    "FL5803": "a node's key is not allowed",
    "FL5804": "an ML repo that is too large for an app bundle",
    "FL5805": "there is no such federation",
    "FL5806": "a run was stopped on the SuperLink",
    "FL5807": "an app bundle or a message that a node does not take",
    "FL5808": "a node's key file that cannot be used",
    "FL5809": "a file of a federation that cannot be read",
    "FL5810": "two nodes with the same key",
    "FL5811": "a node cannot be reached",
    "FL5812": "a way to join a federation that cannot be",
    "FL5813": "no node is declared for a project's tags",
    "FL5840": "a cluster that names a node which is not declared",
    "FL5841": "no node of a federation belongs to a cluster",
    "FL5842": "a node that says another cluster than is declared for it",
    # --- FL6xxx tracking
    "FL6001": "MLflow does not answer",
    "FL6002": "MLflow refuses a request",
    "FL6003": "MLflow refuses to write",
    "FL6004": "MLflow fails",
    "FL6005": "there is no space left for runs and models",
    "FL6006": "a file of a run cannot be read or written",
    "FL6007": "not the address of an MLflow server",
    "FL6008": "a link or special file in a model directory",
    "FL6009": "a version that MLflow does not show",
    "FL6010": "a registered model that is not what was recorded",
    "FL6011": "a registered model without its lock",
    "FL6020": "the registry lost the version of a digest",
    "FL6021": "MLflow lost the run of a digest",
    "FL6030": "the tracking server does not answer",
    # --- FL61xx images: the store and the assembler
    "FL6101": "not a platform",
    "FL6102": "not a digest",
    "FL6103": "a manifest that cannot be understood",
    "FL6104": "a blob that is not what its digest announces",
    "FL6105": "the disk is full while an image is made",
    "FL6106": "an image that is not complete",
    "FL6107": "a damaged image store",
    "FL6108": "the image store cannot be written",
    "FL6110": "a package without a wheel for a platform",
    "FL6111": "wheels that cannot be fetched",
    "FL6112": "a wheel that is refused",
    "FL6113": "a link or special file that would go into an image",
    "FL6114": "too much for an image",
    "FL6115": "a file that changed or went while an image was made",
    "FL6116": "a file name that is refused in an image",
    "FL6120": "a base image without the Python that is needed",
    "FL6121": "a base image without a Debian package",
    "FL6122": "a base image that wheels do not run on",
    "FL6123": "a Python that is not the build plan's",
    "FL6124": "a platform that the build plan does not have",
    "FL6125": "no interpreter for an image without a base",
    "FL6126": "an engine that does not take an image",
    # --- FL614x images: base images, registries, signing
    "FL6140": "not the name of an image in a registry",
    "FL6141": "Docker's credentials cannot be used",
    "FL6142": "a registry that does not answer or breaks off",
    "FL6143": "a registry that is too slow",
    "FL6144": "a registry whose certificate is not trusted",
    "FL6145": "a registry that asks for another login",
    "FL6146": "an image that does not exist",
    "FL6147": "a registry without space",
    "FL6148": "a registry that fails",
    "FL6149": "a registry that rejects a request",
    "FL6150": "an image of a registry that is not what its digest announces",
    "FL6151": "a registry that would be spoken to without encryption",
    "FL6152": "a manifest of a registry that is too large",
    "FL6153": "a base image without a platform that is needed",
    "FL6154": "a base image of a kind that cannot be used",
    "FL6155": "a Docker Engine that does not hand out an image",
    "FL6156": "an image that nobody wants any more",
    "FL6157": "a directory that is not an OCI image layout",
    "FL6160": "a signing key that cannot be used",
    "FL6161": "the password of a signing key is wrong",
    "FL6162": "an image without a signature that holds",
    "FL6163": "a lock or time that no bill of materials can be made from",
    "FL6170": "the registry of the image store cannot listen",
    "FL6171": "an image that the store does not have",
    # --- FL7xxx serving
    "FL7001": "the port is in use",
    "FL7002": "the server ended before it was ready",
    "FL7003": "the server was not ready in time",
    "FL7004": "the supervisor did not understand",
    "FL7005": "the supervisor did not start",
    "FL7006": "the supervisor does not answer",
    "FL7012": "a name that no service may have",
    "FL7013": "no port of the range is free",
    "FL7010": "the service does not answer",
    "FL7011": "the service refuses the request",
    "FL7050": "containers or networks that nobody looks after",
    "FL7051": "another process trains the same run in containers",
    "FL7090": "there is no service to verify",
    "FL7091": "the service answers wrongly after it took over",
    "FL7092": "there is no bundle to deploy",
    "FL7093": "a new version answers wrongly and does not take over",
    "FL7094": "no inference service of that project is running",
    "FL7095": "the model has no held-out samples",
    "FL7101": "the Docker engine does not answer",
    "FL7102": "the Docker engine has no such image",
    "FL7103": "the Docker engine refuses",
    "FL7104": "the kernel killed a container for its memory",
    "FL7105": "there is no image to run",
    "FL7106": "a Docker engine of another machine",
    "FL7107": "an image where services are processes",
    # --- FL8xxx status
    "FL8001": "the status cannot be written",
    # --- FL9xxx controller
    "FL9001": "the journal cannot be opened",
    "FL9002": "the disk is full",
    "FL9003": "an error of the reconciler itself",
    "FL9004": "another reconciler works on the same state directory",
    "FL9005": "the tracked branch declares no project any more",
    "FL9101": "the folder for a fresh GitOps repo is not empty",
    "FL9102": "the folder for a fresh GitOps repo is a file",
    "FL9103": "an example project that there is not",
    "FL9006": "there is no status of that project",
    "FL9010": "the revision of an ML repo is being looked up",
    "FL9011": "the loop was stopped before it could look",
    "FL9012": "the journal cannot be written",
    "FL9013": "records of a project that cannot be read",
    "FL9014": "the journal cannot be read",
    "FL9021": "another reconciler has taken over the state directory",
    "FL9022": "the tracking server of a customer has not answered yet",
    "FL9023": "what a tracking server says cannot be read",
    "FL9201": "a check of `flops doctor` that could not be made",
    "FL9202": "a clone without a remote",
    "FL9203": "the remote does not answer",
    "FL9204": "the remote has no such branch",
    "FL9205": "the status branch cannot be pushed",
    "FL9206": "a clock that is behind the newest commit",
    "FL9207": "a directory that cannot be written to",
    "FL9208": "little space on a disk",
    "FL9209": "a damaged journal",
    "FL9210": "an external tracking server that does not answer as it should",
    "FL9211": "MLflow is not installed",
    "FL9212": "a damaged database of MLflow",
    "FL9213": "no port of the range is free",
    "FL9214": "a kernel whose sandbox is weak",
    "FL9301": "a webhook secret that is empty or can be guessed",
    "FL9302": "a webhook that is not signed with our secret",
    "FL9303": "a webhook whose body is no JSON object",
    "FL9304": "a webhook that is too large",
    "FL9305": "too many webhooks at once",
    "FL9306": "no such webhook",
    "FL9307": "a request without the token",
    "FL9308": "not an address to listen at",
    "FL9309": "an address at which nothing can listen",
    "FL9310": "an address that others can reach, without a token",
    # --- FL932x the API
    "FL9320": "nothing at an address",
    "FL9321": "a method that an address does not take",
    "FL9322": "a parameter that is not taken",
    "FL9323": "a token of the wrong role",
    "FL9324": "no such project",
    "FL9325": "an address that is too long",
    "FL9326": "nothing to try again",
    "FL9327": "a web token that can be guessed",
    "FL9328": "the loop has no answers yet",
    "FL9329": "a server for loopback that was asked for by another name",
    "FL9330": "an error of the web server itself",
    "FL9331": "a body that takes too long",
    # --- FL95xx secrets of projects, decryption, telemetry
    "FL9501": "a tool that decrypts is not installed",
    "FL9502": "a secret that cannot be decrypted",
    "FL9503": "decrypting takes too long",
    "FL9504": "a decrypted file that is too large",
    "FL9505": "a secret that a project may not use",
    "FL9506": "a secret of a project that cannot be had now",
    "FL9507": "a secret that is too short to be masked",
    # --- FL94xx telling people outside of Git
    "FL9401": "a forge whose API or repository is not known",
    "FL9402": "a forge or webhook that does not answer",
    "FL9403": "a forge or webhook that does not accept our secret",
    "FL9404": "a repository that a forge does not show",
    "FL9405": "a forge that asks for a pause",
    "FL9406": "a forge or webhook that refuses what it is sent",
    "FL9407": "a forge or webhook that fails",
    "FL9408": "a forge or webhook that is elsewhere",
    "FL9409": "an answer of a forge that cannot be used",
    "FL9410": "a token that no request can carry",
    "FL9411": "a forge that does not say who comments",
    "FL9412": "too much waits to be told",
    "FL9413": "what is to be told cannot be written down",
    # --- FL96xx secrets
    "FL9601": "the variable of a secret is not set",
    "FL9602": "the file of a secret cannot be read",
    "FL9603": "a secret that cannot be used",
}


@dataclass(frozen=True, slots=True)
class Where:
    """A place in a file of the GitOps repo or an ML repo; line and column count from 1, 0 means unknown."""

    path: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        if not self.line:
            return self.path
        return f"{self.path}:{self.line}:{self.column}" if self.column else f"{self.path}:{self.line}"


class FlopsError(Exception):
    """An error with a stable code, one sentence of cause and one of cure."""

    def __init__(self, code: str, cause: str, *, cure: str, where: Where | None = None, transient: bool = False) -> None:
        super().__init__(cause)
        self.code = code
        self.cause = cause
        self.cure = cure
        self.where = where
        self.transient = transient

    def __str__(self) -> str:
        prefix = f"{self.where}: " if self.where else ""
        return f"{prefix}{self.code} {self.cause} {self.cure}"

    def to_dict(self) -> dict[str, str | int | bool]:
        """The error as flat JSON, as it stands in status, events and `--format json`."""
        return {
            "code": self.code,
            "cause": self.cause,
            "cure": self.cure,
            "path": self.where.path if self.where else "",
            "line": self.where.line if self.where else 0,
            "column": self.where.column if self.where else 0,
            "transient": self.transient,
        }


class SpecError(FlopsError):
    """An SLA, mock-data or operator file that cannot be accepted."""


class SpecErrors(Exception):  # noqa: N818 – it is several errors
    """All the errors of one file, so that a user mends them in one go."""

    def __init__(self, errors: Sequence[SpecError]) -> None:
        super().__init__("\n".join(str(error) for error in errors))
        self.errors = tuple(errors)


class SourceError(FlopsError):
    """Git: a repository, a ref or an ML repo that cannot be read."""


class BuildError(FlopsError):
    """An environment that cannot be locked or built."""


class DataError(FlopsError):
    """A dataset that cannot be fetched, checked or sharded."""


class TrainingError(FlopsError):
    """Federated learning that cannot go on: the ML repo's code, the learners or the quorum."""


class TrackingError(FlopsError):
    """MLflow: the tracking server, runs, the registry or the gate."""


class ImageError(FlopsError):
    """An image that cannot be planned, assembled, pushed or served."""


class ServingError(FlopsError):
    """A service that cannot be started, is not healthy, or answers wrongly."""


class StatusError(FlopsError):
    """The status branch cannot be written."""


class WebError(FlopsError):
    """A webhook or request that is refused, or a web server that cannot be."""


class NotifyError(FlopsError):
    """A forge or webhook that people should be told by, and that cannot be reached or refuses."""

    pause: float = 0.0
    """Seconds after which it makes sense to ask again; 0 where nothing was said."""


class SecretError(FlopsError):
    """A secret that settings refer to and that is not there or cannot be used."""


class ControllerError(FlopsError):
    """The loop, the journal or the machine under them."""
