"""Every error that this library raises on purpose. Each message names the thing and the remedy."""


class DeltaMemError(Exception):
    """Base of all errors of deltamem-agents."""


class AdapterError(DeltaMemError):
    """An adapter folder is missing, incomplete, or asks for something that is not supported."""


class BackboneError(DeltaMemError):
    """A model has no projections that δ-mem could correct, or not the shape that the adapter expects."""


class StateError(DeltaMemError):
    """A memory state cannot be used: damaged bytes, or not made by this adapter and backbone."""


class FingerprintMismatch(StateError):
    """A state was made by another adapter or backbone, or for another layout."""


class StoreError(DeltaMemError):
    """The store could not do what was asked."""


class AgentNotFound(StoreError):
    """No agent of this name in the store."""


class AgentExists(StoreError):
    """An agent of this name is in the store already."""


class InvalidName(StoreError, ValueError):
    """A name of an agent or tenant that a store cannot hold."""


class VersionNotFound(StoreError):
    """No such memory version in the store."""


class HeadConflict(StoreError):
    """The head of an agent moved between reading and writing it."""


class CorruptState(StoreError):
    """A stored state does not match its checksum."""


class CorruptStore(StoreError):
    """The database file itself is damaged."""


class StatePruned(StoreError):
    """The bytes of this version were dropped; replaying the journal brings them back."""


class JournalNotKept(StoreError):
    """The store keeps hashes of messages alone, and the text would be needed."""


class SchemaMismatch(StoreError):
    """The database was made by an older or a newer version of this library, or is none of ours."""


class StoreKeyError(StoreError):
    """An encrypted store, and no key or a wrong one; or a key for a store that is not encrypted."""


class StoreUnavailable(StoreError):
    """The database cannot be reached: the server is down, the file is gone, read-only, or the disk is full."""


class ArchiveError(StoreError):
    """A file that is no export of an agent, or a damaged one."""


class ContextOverflow(DeltaMemError):
    """A prompt has more tokens than the context window of the backbone."""


class EngineBusy(DeltaMemError):
    """More requests wait for the model than its queue holds."""


class EngineOutOfMemory(DeltaMemError):
    """A request that needs more memory than the device has, even with nothing else under way."""


class MissingAgentId(DeltaMemError, ValueError):
    """A call needs to know which agent is being served, and nothing named one."""


class RecipeError(DeltaMemError, ValueError):
    """A training recipe or training file cannot be used."""


class CachedMemory(DeltaMemError):
    """A node of a graph that reads or writes memory has a CachePolicy."""
