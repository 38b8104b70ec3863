"""The kinds of fact: what can be told of services, people, projects, teams, customers, tickets and the user.

Each kind has two nouns and idioms of its own; with the general frames that makes more than twenty ways to state it and
sixteen to ask it. The last two of the frames of each list are never used in training: they test held-out phrasings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from . import words as w

HELD_OUT = 2  # frames at the end of each list that training never uses

STATE = (
    "The {n} of {e} is {v}.",
    "{e}'s {n} is {v}.",
    "For {e}, the {n} is {v}.",
    "{e} has {v} as its {n}.",
    "Please note that the {n} of {e} is {v}.",
    "FYI, {e} {n}: {v}.",
    "Remember that the {n} for {e} is {v}.",
    "We set the {n} of {e} to {v}.",
    "About {e}: the {n} is {v}.",
    "Keep in mind that {v} is the {n} of {e}.",
    "It turns out the {n} for {e} is {v}.",
    "{e}: {n} {v}.",
    "Just to let you know, {e}'s {n} is {v}.",
    "Let's use {v} as the {n} of {e}.",
    "Record this: the {n} of {e} is {v}.",
    "You should know that {v} is the {n} of {e}.",
    "The {n} that we use for {e} is {v}.",
    "So {e} has the {n} {v}.",
    "I was told that the {n} of {e} is {v}.",
    "Write down {v}, the {n} of {e}.",
    "As {n} for {e} we chose {v}.",
    "{v} is {e}'s {n}.",
    "Let's record {v} as the {n} for {e}.",
    "Just so you know, the {n} that {e} has is {v}.",
)
ASK = (
    "What is the {n} of {e}?",
    "What's {e}'s {n}?",
    "Which {n} does {e} have?",
    "Tell me the {n} for {e}.",
    "Do you remember the {n} of {e}?",
    "{e}: {n}?",
    "I forgot the {n} of {e}. What is it?",
    "Can you give me {e}'s {n}?",
    "What {n} did I tell you for {e}?",
    "I need the {n} of {e}.",
    "Remind me what the {n} of {e} is.",
    "What was the {n} of {e} again?",
    "And what about the {n} of {e}?",
    "Please tell me {e}'s {n}.",
    "Quick question: the {n} of {e}?",
    "Do you know {e}'s {n}?",
    "Give me the {n} of {e}, please.",
    "So the {n} of {e} is what?",
    "Let me know the {n} for {e}, please.",
    "The {n} of {e}?",
    "Could you repeat {e}'s {n}?",
    "As to {e}, what is the {n}?",
    "Remind me of the {n} for {e}, please.",
    "And the {n} of {e} was what again?",
)
UPDATE = (
    "Update: the {n} of {e} is now {v}.",
    "The {n} of {e} has changed to {v}.",
    "Correction: {e}'s {n} is {v}.",
    "We changed the {n} for {e}, it is {v} now.",
    "From now on the {n} of {e} is {v}.",
    "{e} got a new {n}: {v}.",
    "Forget the old {n} of {e}; use {v}.",
    "Please change the {n} of {e} to {v}.",
)
SELF_STATE = (
    "My {n} is {v}.",
    "By the way, my {n} is {v}.",
    "Please remember that my {n} is {v}.",
    "About me: my {n} is {v}.",
    "FYI, my {n}: {v}.",
    "For your notes, {v} is my {n}.",
    "I want you to know my {n} is {v}.",
    "My {n}? It is {v}.",
    "Keep in mind that {v} is my {n}.",
    "I have {v} as my {n}.",
    "Just to let you know, my {n} is {v}.",
    "Let's use {v} as my {n}.",
    "Record this: my {n} is {v}.",
    "So my {n} is {v}.",
    "Write down {v}, my {n}.",
    "{v} is my {n}.",
    "You should know that my {n} is {v}.",
    "Let's record {v} as my {n}.",
)
SELF_ASK = (
    "What is my {n}?",
    "What's my {n}?",
    "Tell me my {n}.",
    "Do you remember my {n}?",
    "I forgot my {n}. What is it?",
    "Can you give me my {n}?",
    "What {n} did I tell you?",
    "Which {n} do I have?",
    "Remind me what my {n} is.",
    "What was my {n} again?",
    "And what about my {n}?",
    "Quick question: my {n}?",
    "Do you know my {n}?",
    "Give me my {n}, please.",
    "So my {n} is what?",
    "My {n}?",
    "Remind me of my {n}, please.",
    "And my {n} was what again?",
)
SELF_UPDATE = (
    "Update: my {n} is now {v}.",
    "My {n} has changed to {v}.",
    "Correction: my {n} is {v}.",
    "I changed my {n}, it is {v} now.",
    "From now on my {n} is {v}.",
    "Forget my old {n}; it is {v}.",
)


@dataclass(frozen=True)
class Kind:
    """One kind of fact: ``key`` is its field in a tool result, ``nouns`` are its names in sentences."""

    entity: str
    key: str
    nouns: tuple[str, ...]
    value: w.Maker
    state: tuple[str, ...] = ()
    ask: tuple[str, ...] = ()

    def statements(self, held_out: bool = False) -> Sequence[str]:
        return _phrasings(SELF_STATE if self.entity == "me" else STATE, self.state, held_out)

    def questions(self, held_out: bool = False) -> Sequence[str]:
        return _phrasings(SELF_ASK if self.entity == "me" else ASK, self.ask, held_out)

    def updates(self) -> Sequence[str]:
        return SELF_UPDATE if self.entity == "me" else UPDATE


def _phrasings(frames: tuple[str, ...], idioms: tuple[str, ...], held_out: bool) -> Sequence[str]:
    return frames[-HELD_OUT:] if held_out else frames[:-HELD_OUT] + idioms


def _kind(entity: str, key: str, nouns: str, value: w.Maker, state: str = "", ask: str = "") -> Kind:
    split = lambda text: tuple(filter(None, text.split(" | ")))  # noqa: E731
    return Kind(entity, key, split(nouns), value, split(state), split(ask))


KINDS: tuple[Kind, ...] = (
    _kind("service", "port", "port | listening port", w.number(1024, 65535), "{e} listens on {v}.", "Where does {e} listen?"),
    _kind("service", "host", "host | machine", w.host, "{e} runs on {v}.", "Where does {e} run?"),
    _kind("service", "owner", "owner | service owner", w.person, "{v} owns {e}.", "Who owns {e}?"),
    _kind("service", "on_call", "on-call engineer | pager holder", w.person, "{v} is on call for {e}.", "Who is on call for {e}?"),
    _kind("service", "version", "version | deployed version", w.version, "{e} is at {v}.", "What are we running for {e}?"),
    _kind("service", "region", "region | cloud region", w.region, "{e} is deployed to {v}.", "Where is {e} deployed?"),
    _kind("service", "repository", "repository | code repository", w.word("git/{}-core"), "The code of {e} is in {v}.", "Where is the code of {e}?"),
    _kind("service", "database", "database | main database", w.word("db-{}-#"), "{e} stores its data in {v}.", "Where does {e} store its data?"),
    _kind("service", "replicas", "replica count | number of replicas", w.number(2, 96), "{e} has {v} replicas.", "How many replicas does {e} have?"),
    _kind("service", "memory_limit", "memory limit | RAM limit", w.number(2, 98, "{} GB"), "{e} may use {v} of memory.", "How much memory may {e} use?"),
    _kind("service", "alert_channel", "alert channel | alerts channel", w.word("#{}-alerts"), "Alerts of {e} go to {v}.", "Where do alerts of {e} go?"),
    _kind("service", "language", "programming language | main language", w.of("Rust", "Go", "Python", "Java", "Kotlin", "Elixir", "Ruby", "Scala", "Swift"), "{e} is written in {v}.", "What is {e} written in?"),
    _kind("service", "timeout", "timeout | request timeout", w.number(2, 99, "{} seconds"), "{e} gives up after {v}.", "When does {e} give up?"),
    _kind("service", "health_path", "health path | health check path", w.word("/{}/health"), "The health check of {e} is at {v}.", "Where is the health check of {e}?"),
    _kind("service", "log_bucket", "log bucket | log storage", w.word("logs-{}"), "{e} keeps its logs in {v}.", "Where does {e} keep its logs?"),
    _kind("person", "email", "email | mail address", w.email, "You can write to {e} at {v}.", "Where can I write to {e}?"),
    _kind("person", "extension", "phone extension | extension", w.number(1000, 9999), "Call {e} on {v}.", "On what number do I call {e}?"),
    _kind("person", "desk", "desk | desk number", w.number(10, 99, "4F-{}"), "{e} sits at {v}.", "Where does {e} sit?"),
    _kind("person", "role", "role | job", w.of("designer", "analyst", "architect", "tester", "accountant", "engineer", "recruiter", "writer"), "{e} works as {v}.", "What does {e} work as?"),
    _kind("person", "manager", "manager | boss", w.person, "{e} reports to {v}.", "Who does {e} report to?"),
    _kind("person", "city", "city | home city", w.place, "{e} lives in {v}.", "Where does {e} live?"),
    _kind("person", "birthday", "birthday | date of birth", w.date, "{e} was born on {v}.", "When was {e} born?"),
    _kind("person", "laptop", "laptop | laptop number", w.word("{}-##"), "{e} works on {v}.", "What does {e} work on?"),
    _kind("person", "leave", "first day of leave | leave start", w.date, "{e} will be away from {v}.", "When does {e} go away?"),
    _kind("project", "budget", "budget | total budget", w.money, "{e} may cost {v}.", "How much may {e} cost?"),
    _kind("project", "deadline", "deadline | due date", w.date, "{e} must be done by {v}.", "When must {e} be done?"),
    _kind("project", "code_name", "code name | secret name", w.code_name, "We call {e} {v} in public.", "What do we call {e} in public?"),
    _kind("project", "lead", "lead | project lead", w.person, "{v} leads {e}.", "Who leads {e}?"),
    _kind("project", "sponsor", "sponsor | executive sponsor", w.person, "{v} pays for {e}.", "Who pays for {e}?"),
    _kind("project", "kickoff", "kickoff | kickoff date", w.date, "{e} kicks off on {v}.", "When does {e} kick off?"),
    _kind("project", "epic", "epic | epic ticket", w.ticket, "{e} is tracked in {v}.", "Where is {e} tracked?"),
    _kind("project", "vendor", "vendor | supplier", w.word("{} Ltd"), "We buy the parts of {e} from {v}.", "From whom do we buy the parts of {e}?"),
    _kind("team", "channel", "chat channel | channel", w.word("#{}-team"), "{e} talks in {v}.", "Where does {e} talk?"),
    _kind("team", "standup", "standup time | daily standup", w.clock, "{e} meets daily at {v}.", "When does {e} meet daily?"),
    _kind("team", "room", "meeting room | room", w.number(100, 999, "B-{}"), "{e} meets in {v}.", "Where does {e} meet?"),
    _kind("team", "retro_day", "retro day | retrospective day", w.of(*w.DAYS), "{e} holds its retro on {v}.", "When does {e} hold its retro?"),
    _kind("team", "headcount", "headcount | size", w.number(3, 60), "{e} has {v} people.", "How many people are in {e}?"),
    _kind("team", "mascot", "mascot | team mascot", w.code_name, "{e} chose {v} for its shirt.", "What did {e} choose for its shirt?"),
    _kind("customer", "contact", "contact | contact person", w.person, "Our person at {e} is {v}.", "Who is our person at {e}?"),
    _kind("customer", "contract", "contract number | contract", w.number(10000, 99999, "C-{}"), "{e} signed {v}.", "What did {e} sign?"),
    _kind("customer", "plan", "plan | subscription plan", w.of("bronze", "silver", "gold", "platinum", "basic", "premium"), "{e} subscribes to {v}.", "What does {e} subscribe to?"),
    _kind("customer", "renewal", "renewal date | renewal", w.date, "{e} renews on {v}.", "When does {e} renew?"),
    _kind("customer", "seats", "seat count | number of seats", w.number(11, 990), "{e} bought {v} seats.", "How many seats did {e} buy?"),
    _kind("ticket", "assignee", "assignee | person in charge", w.person, "{v} works on {e}.", "Who works on {e}?"),
    _kind("ticket", "priority", "priority | urgency", w.of("low", "medium", "high", "urgent", "critical"), "{e} is rated {v}.", "How is {e} rated?"),
    _kind("ticket", "estimate", "estimate | effort", w.number(2, 60, "{} hours"), "{e} takes {v}.", "How long does {e} take?"),
    _kind("ticket", "component", "component | affected part", w.word("{}-module"), "{e} touches {v}.", "What does {e} touch?"),
    _kind("me", "colour", "favourite colour | favorite color", w.of(*w.COLOURS), "I like {v} best of all colours.", "Which colour do I like best?"),
    _kind("me", "drink", "favourite drink | usual drink", w.of("green tea", "espresso", "lemonade", "cocoa", "apple juice", "chai", "mate", "oat latte"), "I always drink {v}.", "What do I always drink?"),
    _kind("me", "editor", "editor | text editor", w.of("vim", "emacs", "nano", "helix", "kate", "zed", "sublime"), "I write code in {v}.", "What do I write code in?"),
    _kind("me", "pet", "pet's name | dog's name", w.word("{}"), "I call my pet {v}.", "What do I call my pet?"),
    _kind("me", "town", "home town | birthplace", w.place, "I come from {v}.", "Where do I come from?"),
    _kind("me", "hours", "working hours | office hours", w.hours, "I work from {v}.", "When do I work?"),
    _kind("me", "badge", "badge number | badge", w.number(10000, 99999), "I wear badge {v}.", "Which badge do I wear?"),
    _kind("me", "hobby", "hobby | favourite pastime", w.of("chess", "climbing", "painting", "sailing", "gardening", "archery", "pottery", "fencing"), "In my free time I do {v}.", "What do I do in my free time?"),
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
        return self.kind.key, self.entity

    def state(self, rng: Random, held_out: bool = False) -> str:
        return self.say(rng, self.kind.statements(held_out))

    def update(self, rng: Random) -> str:
        return self.say(rng, self.kind.updates())

    def ask(self, rng: Random, held_out: bool = False) -> str:
        return self.say(rng, self.kind.questions(held_out))

    def say(self, rng: Random, frames: Sequence[str]) -> str:
        noun = self.kind.nouns[0] if rng.random() < 0.6 else rng.choice(self.kind.nouns)
        text = rng.choice(frames).replace("{n}", noun).replace("{e}", self.entity).replace("{v}", self.value)
        return "The" + text[3:] if text.startswith("the ") else text


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
