"""The real model with its real weights, through a pipeline of real processes, against transformers itself."""

from concurrent.futures import ThreadPoolExecutor

import flexpipe
import openai
import pytest
from flexpipe.runtime.models.model_store import resolve
from served import served

pytestmark = pytest.mark.slow

TOKENS = 16
QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "What is 2 + 3?",
    "Who wrote Hamlet?",
    "Explain gravity in one sentence.",
    "Translate 'good morning' into Spanish.",
    "What do bees make?",
    "How many days has a week?",
    "Write a haiku about rain.",
    "Why is the sky blue?",
    "What is the opposite of hot?",
    "Give me a synonym for happy.",
    "Where do penguins live?",
    "What is H2O?",
    "Tell me a short joke.",
    "List the first five primes.",
    "Qu'est-ce que c'est? 日本語 🙂",
    "def fibonacci(n):",
    "What is a pipeline?",
    "The quick brown fox jumps over the lazy dog. " * 20 + "What did the fox do?",
)


@pytest.fixture(scope="module")
def folder():
    return resolve("smollm2").path


@pytest.fixture(scope="module")
def greedy(folder):
    """transformers' own greedy answers, one prompt at a time, in fp32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them wait for each other for minutes on a busy machine
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    answers = []
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            output = model.generate(**prompt, max_new_tokens=TOKENS, do_sample=False)
        answers.append(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
    torch.set_num_threads(threads)
    return answers


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    options = ("--stages", "3", "--deterministic", "--step-tokens", "64")
    with served("smollm2", *options, log_folder=tmp_path_factory.mktemp("logs")) as running:
        yield running


def ask_all(server, beside=lambda: None):
    """The answers to all questions, asked at once; ``beside`` is called while they are answered."""

    def ask(question):
        answer = client.chat.completions.create(
            model="smollm2", messages=[{"role": "user", "content": question}], max_tokens=TOKENS, temperature=0
        )
        return answer.choices[0].message.content

    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused") as client,
        ThreadPoolExecutor(len(QUESTIONS)) as pool,
    ):
        asked = [pool.submit(ask, question) for question in QUESTIONS]
        beside()
        return [answer.result() for answer in asked]


def test_twenty_prompts_at_once_get_transformers_own_greedy_text(server, greedy):
    assert ask_all(server) == greedy


def test_they_get_it_while_the_pipeline_is_refactored_too(server, greedy):
    ended = []

    def refactor():
        while not server.status()["running"]:
            pass
        with flexpipe.Client(server.url) as client:
            report = client.refactor(stages=2).wait()
            ended.append((report.requests_lost, client.status()["running"] > 0))

    assert ask_all(server, refactor) == greedy
    assert ended == [(0, True)]
    assert len(server.status()["stages"]) == 2
