"""The kinds of fact: what can be told of services, people, projects, teams, customers, tickets and the user.

Each kind has two nouns, and idioms of its own beside the general frames of phrasings.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from . import phrasings as p
from . import words as w

IDIOMATIC = 6  # an idiom is as frequent as so many general frames
PLAIN_UPDATES = 0.2  # share of changes that are told like any fact


@dataclass(frozen=True)
class Kind:
    """One kind of fact: ``key`` is its field in a tool result, ``nouns`` are its names in sentences."""

    entity: str
    key: str
    nouns: tuple[str, ...]
    value: w.Maker
    state: tuple[p.Frame, ...] = ()
    ask: tuple[p.Frame, ...] = ()

    @property
    def own(self) -> bool:
        """Whether it is about the user."""
        return self.entity == "me"

    def statements(self, held_out: bool = False) -> Sequence[p.Frame]:
        if held_out:
            return p.HELD_OUT_SELF_STATE if self.own else p.HELD_OUT_STATE
        return (p.SELF_STATE if self.own else p.STATE) + self.state * IDIOMATIC

    def questions(self, held_out: bool = False) -> Sequence[p.Frame]:
        if held_out:
            return p.HELD_OUT_SELF_ASK if self.own else p.HELD_OUT_ASK
        return (p.SELF_ASK if self.own else p.ASK) + self.ask * IDIOMATIC

    def updates(self) -> Sequence[p.Frame]:
        return p.SELF_UPDATE if self.own else p.UPDATE


def _kind(entity: str, key: str, nouns: str, value: w.Maker, state: str, ask: str) -> Kind:
    return Kind(entity, key, tuple(nouns.split(" | ")), value, *p.idioms((state,), (ask,)))


KINDS: tuple[Kind, ...] = (
    _kind("service", "port", "port | listening port", w.number(1024, 65535), "{e} listens on {v}", "where does {e} listen"),
    _kind("service", "host", "host | machine", w.host, "{e} runs on {v}", "where does {e} run"),
    _kind("service", "owner", "owner | service owner", w.person, "{v} owns {e}", "who owns {e}"),
    _kind("service", "on_call", "on-call engineer | pager holder", w.person, "{v} is on call for {e}", "who is on call for {e}"),
    _kind("service", "version", "version | deployed version", w.version, "{e} is at {v}", "what are we running for {e}"),
    _kind("service", "region", "region | cloud region", w.region, "{e} is deployed to {v}", "where is {e} deployed"),
    _kind("service", "repository", "repository | code repository", w.word("git/{}"), "the code of {e} is in {v}", "where is the code of {e}"),
    _kind("service", "database", "database | main database", w.word("db-{}-#"), "{e} stores its data in {v}", "where does {e} store its data"),
    _kind("service", "replicas", "replica count | number of replicas", w.number(2, 96), "{e} has {v} replicas", "how many replicas does {e} have"),
    _kind("service", "memory_limit", "memory limit | RAM limit", w.number(2, 98, "{} GB"), "{e} may use {v} of memory", "how much memory may {e} use"),
    _kind("service", "alert_channel", "alert channel | alerts channel", w.word("#{}"), "alerts of {e} go to {v}", "where do alerts of {e} go"),
    _kind("service", "language", "programming language | main language", w.of("Rust", "Go", "Python", "Java", "Kotlin", "Elixir", "Ruby", "Scala", "Swift"), "{e} is written in {v}", "what is {e} written in"),
    _kind("service", "timeout", "timeout | request timeout", w.number(2, 99, "{} seconds"), "{e} gives up after {v}", "when does {e} give up"),
    _kind("service", "health_path", "health path | health check path", w.word("/{}"), "the health check of {e} is at {v}", "where is the health check of {e}"),
    _kind("service", "log_bucket", "log bucket | log storage", w.word("logs-{}"), "{e} keeps its logs in {v}", "where does {e} keep its logs"),
    _kind("person", "email", "email | mail address", w.email, "you can write to {e} at {v}", "where can I write to {e}"),
    _kind("person", "extension", "phone extension | extension", w.number(1000, 9999), "call {e} on {v}", "on what number do I call {e}"),
    _kind("person", "desk", "desk | desk number", w.number(10, 99, "4F-{}"), "{e} sits at {v}", "where does {e} sit"),
    _kind("person", "role", "role | job", w.of("designer", "analyst", "architect", "tester", "accountant", "engineer", "recruiter", "writer"), "{e} works as {v}", "what does {e} work as"),
    _kind("person", "manager", "manager | boss", w.person, "{e} reports to {v}", "who does {e} report to"),
    _kind("person", "city", "city | home city", w.place, "{e} lives in {v}", "where does {e} live"),
    _kind("person", "birthday", "birthday | date of birth", w.date, "{e} was born on {v}", "when was {e} born"),
    _kind("person", "laptop", "laptop | laptop number", w.word("{}-##"), "{e} works on {v}", "what does {e} work on"),
    _kind("person", "leave", "first day of leave | leave start", w.date, "{e} will be away from {v}", "when does {e} go away"),
    _kind("project", "budget", "budget | total budget", w.money, "{e} may cost {v}", "how much may {e} cost"),
    _kind("project", "deadline", "deadline | due date", w.date, "{e} must be done by {v}", "when must {e} be done"),
    _kind("project", "code_name", "code name | secret name", w.code_name, "we call {e} {v} in public", "what do we call {e} in public"),
    _kind("project", "lead", "lead | project lead", w.person, "{v} leads {e}", "who leads {e}"),
    _kind("project", "sponsor", "sponsor | executive sponsor", w.person, "{v} pays for {e}", "who pays for {e}"),
    _kind("project", "kickoff", "kickoff | kickoff date", w.date, "{e} kicks off on {v}", "when does {e} kick off"),
    _kind("project", "epic", "epic | epic ticket", w.ticket, "{e} is tracked in {v}", "where is {e} tracked"),
    _kind("project", "vendor", "vendor | supplier", w.word("{} Ltd"), "we buy the parts of {e} from {v}", "from whom do we buy the parts of {e}"),
    _kind("team", "channel", "chat channel | channel", w.word("#{}"), "{e} talks in {v}", "where does {e} talk"),
    _kind("team", "standup", "standup time | daily standup", w.clock, "{e} meets daily at {v}", "when does {e} meet daily"),
    _kind("team", "room", "meeting room | room", w.number(100, 999, "B-{}"), "{e} meets in {v}", "where does {e} meet"),
    _kind("team", "retro_day", "retro day | retrospective day", w.of(*w.DAYS), "{e} holds its retro on {v}", "when does {e} hold its retro"),
    _kind("team", "headcount", "headcount | size", w.number(3, 60), "{e} has {v} people", "how many people are in {e}"),
    _kind("team", "mascot", "mascot | team mascot", w.code_name, "{e} chose {v} for its shirt", "what did {e} choose for its shirt"),
    _kind("customer", "contact", "contact | contact person", w.person, "our person at {e} is {v}", "who is our person at {e}"),
    _kind("customer", "contract", "contract number | contract", w.number(10000, 99999, "C-{}"), "{e} signed {v}", "what did {e} sign"),
    _kind("customer", "plan", "plan | subscription plan", w.of("bronze", "silver", "gold", "platinum", "basic", "premium"), "{e} subscribes to {v}", "what does {e} subscribe to"),
    _kind("customer", "renewal", "renewal date | renewal", w.date, "{e} renews on {v}", "when does {e} renew"),
    _kind("customer", "seats", "seat count | number of seats", w.number(11, 990), "{e} bought {v} seats", "how many seats did {e} buy"),
    _kind("ticket", "assignee", "assignee | person in charge", w.person, "{v} works on {e}", "who works on {e}"),
    _kind("ticket", "priority", "priority | urgency", w.of("low", "medium", "high", "urgent", "critical"), "{e} is rated {v}", "how is {e} rated"),
    _kind("ticket", "estimate", "estimate | effort", w.number(2, 60, "{} hours"), "{e} takes {v}", "how long does {e} take"),
    _kind("ticket", "component", "component | affected part", w.word("{}-module"), "{e} touches {v}", "what does {e} touch"),
    _kind("me", "colour", "favourite colour | favorite color", w.of(*w.COLOURS), "I like {v} best of all colours", "which colour do I like best"),
    _kind("me", "drink", "favourite drink | usual drink", w.of("green tea", "espresso", "lemonade", "cocoa", "apple juice", "chai", "mate", "oat latte"), "I always drink {v}", "what do I always drink"),
    _kind("me", "editor", "editor | text editor", w.of("vim", "emacs", "nano", "helix", "kate", "zed", "sublime"), "I write code in {v}", "what do I write code in"),
    _kind("me", "pet", "pet's name | dog's name", w.word("{}"), "I call my pet {v}", "what do I call my pet"),
    _kind("me", "town", "home town | birthplace", w.place, "I come from {v}", "where do I come from"),
    _kind("me", "hours", "working hours | office hours", w.hours, "I work from {v}", "when do I work"),
    _kind("me", "badge", "badge number | badge", w.number(10000, 99999), "I wear badge {v}", "which badge do I wear"),
    _kind("me", "hobby", "hobby | favourite pastime", w.of("chess", "climbing", "painting", "sailing", "gardening", "archery", "pottery", "fencing"), "in my free time I do {v}", "what do I do in my free time"),
)  # fmt: skip
BY_ENTITY: dict[str, tuple[Kind, ...]] = {
    e: tuple(k for k in KINDS if k.entity == e) for e in {k.entity for k in KINDS}
}


@dataclass(frozen=True)
class Fact:
    """A value told of an entity; ``entity`` is how sentences name it ("atlas", "the payments team", "" for the user)."""

    kind: Kind
    entity: str
    value: str

    @property
    def key(self) -> tuple[str, str]:
        return self.kind.key, same_name(self.entity)

    def state(self, rng: Random, held_out: bool = False) -> str:
        return self.say(rng, self.kind.statements(held_out))

    def update(self, rng: Random) -> str:
        return self.say(rng, self.kind.statements() if rng.random() < PLAIN_UPDATES else self.kind.updates())

    def ask(self, rng: Random, held_out: bool = False) -> str:
        return self.say(rng, self.kind.questions(held_out))

    def say(self, rng: Random, frames: Sequence[p.Frame]) -> str:
        noun = self.kind.nouns[0] if rng.random() < 0.6 else rng.choice(self.kind.nouns)
        return rng.choice(frames).say(rng, noun, self.entity, self.value)


def new_entity(rng: Random, group: str) -> str:
    """A name for an entity: mostly out of a pool, sometimes made up; services in lower or title case."""
    if group == "service":
        name = rng.choice(w.SERVICES) if rng.random() < 0.75 else w.made_up(rng)
        return name if rng.random() < 0.7 else name.capitalize()
    if group == "person":
        return rng.choice(w.FIRST_NAMES) if rng.random() < 0.75 else w.made_up(rng).capitalize()
    if group == "project":
        name = rng.choice(w.PROJECTS) if rng.random() < 0.75 else w.made_up(rng).capitalize()
        return name if rng.random() < 0.5 else f"project {name}"
    if group == "team":
        return f"the {rng.choice(w.TEAMS)} team"
    if group == "customer":
        return rng.choice(w.CUSTOMERS) if rng.random() < 0.6 else w.made_up(rng).capitalize()
    return w.ticket(rng) if group == "ticket" else ""


def same_name(entity: str) -> str:
    """What is equal for names of the same entity: "Atlas" and "atlas", "project Elm" and "Elm"."""
    return entity.lower().removeprefix("project ")
