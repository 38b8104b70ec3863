"""A LangChain chain whose model remembers what was said in earlier calls, with nothing of it in the prompt."""

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from deltamem_agents import DeltaMemChatModel

model = DeltaMemChatModel()  # the embedded backbone and adapter, on CPU; memory in ~/.deltamem/memory.db
chain = ChatPromptTemplate.from_messages([("human", "{text}")]) | model | StrOutputParser()
config = {"configurable": {"agent_id": "chain-example"}}

for text in ("The port of atlas is 48213.", "My favourite drink is green tea."):
    print(f"> {text}\n{chain.invoke({'text': text}, config)}")

for text in ("What is the port of atlas?", "What is my favourite drink?", "What is the budget of Aurora?"):
    print(f"> {text}\n{chain.invoke({'text': text}, config)}")

model.reset("chain-example")
