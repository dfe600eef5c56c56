"""One process's connection to the database, and the queries of each table family."""

from serve_app.config import DatabaseArgs
from serve_app.store.adapters import AdapterStore
from serve_app.store.backlog import Backlog
from serve_app.store.claims import ClaimStore
from serve_app.store.client_settings import ClientSettingStore
from serve_app.store.costs import CostStore
from serve_app.store.database import Database
from serve_app.store.decisions import DecisionStore
from serve_app.store.foreign_clients import ForeignClientStore
from serve_app.store.inputs import InputStore
from serve_app.store.installation import InstallationStore
from serve_app.store.jobs import JobStore
from serve_app.store.keys import KeyStore
from serve_app.store.leases import LeaseStore
from serve_app.store.load_attempts import LoadAttemptStore
from serve_app.store.notifications import Notifications
from serve_app.store.pauses import PauseStore
from serve_app.store.plans import PlanStore
from serve_app.store.retention import RetentionStore
from serve_app.store.time_limits import TimeLimits
from serve_app.store.voices import VoiceStore
from serve_app.store.waiting_calls import WaitingCallStore
from serve_app.store.webhooks import WebhookStore
from serve_app.store.workers import WorkerStore
from serve_app.supervision import Supervisor


class Store:
    """One process's connection to the database; safe to use from several threads."""

    def __init__(self, url: str, limits: DatabaseArgs | None = None) -> None:
        """`url` is `sqlite:///file` or `postgresql://…`. Nothing is opened before the first call. Raises ConfigurationError."""
        self.supervisor = Supervisor()
        """Supervises the threads that use this store."""
        self.database = Database(url, limits)
        self.jobs = JobStore(self.database)
        self.inputs = InputStore(self.database)
        self.voices = VoiceStore(self.database)
        self.claims = ClaimStore(self.database)
        self.plans = PlanStore(self.database)
        self.waiting_calls = WaitingCallStore(self.database)
        self.foreign_clients = ForeignClientStore(self.database)
        self.client_settings = ClientSettingStore(self.database)
        self.time_limits = TimeLimits(self.database)
        self.backlog = Backlog(self.database)
        self.workers = WorkerStore(self.database)
        self.load_attempts = LoadAttemptStore(self.database)
        self.decisions = DecisionStore(self.database)
        self.pauses = PauseStore(self.database)
        self.adapters = AdapterStore(self.database)
        self.costs = CostStore(self.database)
        self.keys = KeyStore(self.database)
        self.webhooks = WebhookStore(self.database)
        self.retention = RetentionStore(self.database)
        self.leases = LeaseStore(self.database)
        self.installation = InstallationStore(self.database)
        self.notifications = Notifications(self.database, self.supervisor)

    def migrate(self) -> None:
        """Bring the schema up to date. Several processes may call this at once."""
        self.database.migrate()

    def collect_dead_processes(self) -> None:
        """Clean up after this host's dead processes: release their claims, fail their loads, delete their worker rows."""
        for worker in self.workers.dead():
            self.claims.release(worker.id)
            self.plans.release(worker.id)
            self.workers.forget(worker.id)
        self.load_attempts.fail_crashed()

    def close(self) -> None:
        """Stop watching and close every connection."""
        self.notifications.close()
        self.database.close()
