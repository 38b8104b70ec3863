"""Forgetting a person: what came from them goes from the journal, the file and every state, as if never said."""

import tempfile
from pathlib import Path

from deltamem_agents import DeltaMemChatModel

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "memory.db"
    model = DeltaMemChatModel(store=str(file), remember=False)
    desk = model.memory("desk")
    desk.write("My favourite drink is green tea.", source="mila")
    desk.write("The port of atlas is 4821.", source="wiki")

    def ask(text: str) -> str:
        return model.invoke(text, agent_id="desk").text

    questions = ("What is my favourite drink?", "What is the port of atlas?")
    print("before:")
    for question in questions:
        print(f"> {question}\n{ask(question)}")

    gone = desk.forget(source="mila")
    print("forgotten:", gone)
    for question in questions:
        print(f"> {question}\n{ask(question)}")
    print("found by words:", [document.page_content for document in desk.search("green tea")])
    print("in the file:", b"green tea" in file.read_bytes())
