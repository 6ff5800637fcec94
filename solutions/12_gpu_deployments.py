# ---
# jupyter:
#   workshop: {ray: true}
# ---

# %% [markdown]
# # 12 GPU deployments
#
# A graphics card that answers one prompt at a time is bored: most of it waits for its own memory. On a large card, sixteen prompts
# together take hardly longer than one. You will fill the card, without making anyone wait for the longest answer.
#
# Afterwards you can
#
# - run the same deployment on a card and on a CPU,
# - batch prompts of different lengths, and say why padding costs,
# - explain why answers should join and leave a batch at each token,
# - stream tokens out of a replica,
# - let several replicas share a card, and compute how much of its memory each may use.
#
# Everything runs on a CPU as well, because the model is small, and shows the same effects. On an idle machine without a card, the code
# takes {{ minutes }} and {{ memory }} of memory. Allow 60 minutes, exercises included.
#
# Arriving late, or restarted the kernel? `await start_at("12.3")` runs what exercise 3 builds on.

# %%
from workshop.lab import bars, check, compare, hint, marks
from workshop.lab import service_map, solution, start_at, start_serve, stop_all, stop_serve, waterfall

service_map("12")

# %% [markdown]
# ## One at a time
#
# This deployment loads a language model and moves it to the card, if there is one. Many CPUs are slow with numbers of two bytes (half
# precision), so there the model gets four (single precision).

# %%
import asyncio
import time
from pathlib import Path

import workshop.models

url = start_serve()
import ray
from ray import serve

folder = str(Path(workshop.models.__file__).parent / "weights" / "workshop-main")


# %% [markdown]
# An answer usually ends when the model says so. For our measurements it never does: each answer gets as many tokens as we ask for.
# `chat` puts a question into the form that the model was trained on.


# %%
def load_model(folder):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)  # of the CPU: a model this small is usually faster with one
    dtype = "auto" if device == "cuda" else torch.float32
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    network.generation_config.eos_token_id = -1  # no token ends the answer
    return network, AutoTokenizer.from_pretrained(folder, padding_side="left")


def chat(question):
    return f"<|user|>{question}<|end|><|assistant|>"


# %%
class OneByOne:
    def __init__(self, folder):
        self.network, self.tokenizer = load_model(folder)

    async def complete(self, question, tokens):
        prompt = self.tokenizer(chat(question), return_tensors="pt").to(self.network.device)
        ids = self.network.generate(**prompt, max_new_tokens=tokens, do_sample=False)
        return self.tokenizer.decode(ids[0, prompt.input_ids.shape[1] :])

    async def device(self):
        return str(self.network.device)


# %% [markdown]
# `num_gpus` reserves a part of a card, here half of one. On a machine without a card, this notebook's Ray pretends to have one. To save
# memory, each model of this lesson is deleted before the next one starts.

# %%
half = {"ray_actor_options": {"num_gpus": 0.5}, "max_ongoing_requests": 64}


def run_model(kind):
    serve.delete("model")
    return serve.run(serve.deployment(kind).options(**half).bind(folder), name="model", route_prefix=None)


# %% start_at=false
one_by_one = run_model(OneByOne)
await one_by_one.device.remote()

# %%
question = "What is Ray Serve?"

# %% start_at=false
await one_by_one.complete.remote(question, 24)


# %% [markdown]
# One caller asks for forty tokens. Then four ask at the same time, and sixteen. How many tokens per second does the replica
# make for all of them together?


# %%
async def tokens_per_second(complete, callers, tokens=40):
    began = time.perf_counter()
    await asyncio.gather(*(complete(question, tokens) for _ in range(callers)))
    return callers * tokens / (time.perf_counter() - began)


# %%
speed = {}
guess = {1: ..., 4: ..., 16: ...}

# %% start_at=false
speed["one at a time"] = {n: await tokens_per_second(one_by_one.complete.remote, n) for n in (1, 4, 16)}
compare(guess, speed["one at a time"], "tokens per second")

# %% [markdown]
# Nearly the same, however many ask: the replica works on one prompt after the other. A thread for each prompt would not help much,
# because all threads need the same hardware. For each token, the replica reads all weights of the model. With sixteen prompts in one
# tensor, it would read them once for sixteen tokens.
#
# ## Sixteen in one tensor
#
# `@serve.batch` collects calls, as in lesson 09: `questions` and `tokens` are lists, with one item for each call. The tokenizer pads
# the prompts to one length, and `generate` extends all of them.


# %%
class Batched(OneByOne):
    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.02)
    async def complete(self, questions, tokens):
        texts = [chat(question) for question in questions]
        prompts = self.tokenizer(texts, return_tensors="pt", padding=True).to(self.network.device)
        ids = self.network.generate(**prompts, max_new_tokens=max(tokens), do_sample=False)
        answers = ids[:, prompts.input_ids.shape[1] :]
        return [self.tokenizer.decode(answer[:count]) for answer, count in zip(answers, tokens, strict=True)]


# %% start_at=false
batched = run_model(Batched)
await batched.complete.remote(question, 24)

# %% [markdown]
# How many tokens per second now?

# %%
guess = {1: ..., 4: ..., 16: ...}

# %% start_at=false
speed["a batch"] = {n: await tokens_per_second(batched.complete.remote, n) for n in (1, 4, 16)}
compare(guess, speed["a batch"], "tokens per second")


# %%
def by_callers(speed):
    return {f"callers: {n}": {name: rates[n] for name, rates in speed.items()} for n in (1, 4, 16)}


# %% start_at=false
bars(by_callers(speed), y="tokens per second", title="the same model on the same hardware")

# %% [markdown]
# With sixteen callers, the same model on the same hardware is several times as fast, because they share each step. One caller alone
# has nothing to share, and waits 20 ms for company. On a large card with a large model, the gain is usually greater still.
#
# ## Padding
#
# A tensor is a rectangle, and prompts have different lengths. The missing places hold a padding token, and a mask of ones and
# zeros says which places count. Where should the padding go? Let us try both sides, with a short prompt beside a long one.


# %%
class OnEitherSide(Batched):
    async def first_answer(self, questions, side):
        texts = [chat(question) for question in questions]
        prompts = self.tokenizer(texts, return_tensors="pt", padding=True, padding_side=side).to(self.network.device)
        ids = self.network.generate(**prompts, max_new_tokens=10, do_sample=False)
        return self.tokenizer.decode(ids[0, prompts.input_ids.shape[1] :])


# %%
long_question = question.replace("Ray Serve", "the difference between a deployment, a replica and an application")

# %%
batched = run_model(OnEitherSide)

# %% [markdown]
# The short prompt is answered three times: alone, and beside the long one with padding on the left and on the right. With which
# padding is the answer the same as alone, `"left"` or `"right"`?

# %%
guess = ...

# %% start_at=false
alone = await batched.first_answer.remote([question], "left")
both = {side: await batched.first_answer.remote([question, long_question], side) for side in ("left", "right")}
compare(guess, ", ".join(side for side, answer in both.items() if answer == alone))
both

# %% [markdown]
# A model continues what stands last. With the padding on the right, that is a row of padding tokens. The mask, which `**prompts` hands
# over too, does not change that. So prompts are padded on the left, and all of them end in the same column.
#
# ### Exercise 1: a rectangle of prompts
#
# `pad_left(prompts, pad)` gets lists of token IDs, and returns two lists of lists: the rows of the tensor, all as long as the longest
# prompt, and the rows of the mask, with 1 for tokens and 0 for padding. A prompt may be empty, or contain the padding token itself. The
# lists that it gets stay as they are.


# %% exercise="12.1"
def pad_left(prompts, pad):
    # solution (about 5 lines)
    longest = max(map(len, prompts), default=0)
    missing = [longest - len(prompt) for prompt in prompts]
    rows = [[pad] * count + list(prompt) for count, prompt in zip(missing, prompts, strict=True)]
    mask = [[0] * count + [1] * len(prompt) for count, prompt in zip(missing, prompts, strict=True)]
    return rows, mask
    # starter
    # return ..., ...
    # end


# %%
check("12.1", pad_left)

# %% [markdown]
# Padding is work that nobody asked for. A rectangle of one prompt with 1000 tokens and fifteen with 10 tokens has 16 000
# places, and 1150 of them are used. With a rectangle of their own for the short ones, all places are used. So the places of a rectangle
# get a limit, which also keeps it within the card's memory.
#
# ### Exercise 2: few rectangles that fit
#
# `batches(lengths, most)` says which prompts to put together: it returns lists of indices, in any order. Every index occurs once. A
# batch takes as many places as it has prompts, times the length of its longest one. These are at most `most`; a prompt that alone is
# longer still goes in, by itself. Return as few batches as possible, and leave `lengths` as it is.


# %% exercise="12.2"
def batches(lengths, most):
    # solution (about 9 lines)
    found = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        longest = lengths[found[-1][0]] if found else 0
        if found and (len(found[-1]) + 1) * longest <= most:
            found[-1].append(index)
        else:
            found.append([index])
    return found
    # starter
    # return ...
    # end


# %%
check("12.2", batches)

# %% [markdown]
# ## Nobody waits for the longest
#
# Answers have different lengths, too. Seven callers ask for 150 tokens. An eighth one asks for five, 100 ms later. How many
# milliseconds does the eighth wait?

# %%
guess = ...


# %%
async def seven_and_one(complete):
    began, waits = time.perf_counter(), {}

    async def ask(name, tokens, pause=0.0):
        await asyncio.sleep(pause)
        sent = 1000 * (time.perf_counter() - began)
        await complete(question, tokens)
        waits[name] = sent, 1000 * (time.perf_counter() - began)

    await asyncio.gather(*(ask(f"caller {number}", 150) for number in range(1, 8)), ask("caller 8", 5, pause=0.1))
    return dict(sorted(waits.items()))


# %% start_at=false
waits = await seven_and_one(batched.complete.remote)
compare(guess, waits["caller 8"][1] - waits["caller 8"][0], "ms")

# %% start_at=false
waterfall(waits, title="a batch that runs to its end")

# %% [markdown]
# The batch was under way, so the eighth waited until it was over. But the model makes one token per prompt and step, and between two
# steps the batch may change. That is continuous batching: an answer that is finished leaves, and one that waits joins.
#
# The service uses the continuous batching of `transformers`. It needs no padding: the prompts lie one behind the other, and each token
# attends only to its own prompt and answer.


# %%
class Continuous:
    def __init__(self, folder):
        from workshop.models.language_model import LanguageModel

        self.model = LanguageModel("main", *load_model(folder))

    async def complete(self, question, tokens):
        return await self.model.complete(as_prompt(question, tokens))

    async def stream(self, question, tokens):
        async for chunk in self.model.stream(as_prompt(question, tokens)):
            yield len(chunk.tokens)

    def __del__(self):
        self.model.close()


# %%
def as_prompt(question, tokens):
    from workshop.contracts.generator import Message, Prompt

    return Prompt((Message("user", question),), max_tokens=tokens)


# %%
continuous = run_model(Continuous)
_ = await tokens_per_second(continuous.complete.remote, 2)  # the first calls are slower

# %% [markdown]
# How many milliseconds does the eighth wait now?

# %%
guess = ...

# %% start_at=false
waits = await seven_and_one(continuous.complete.remote)
compare(guess, waits["caller 8"][1] - waits["caller 8"][0], "ms")

# %% start_at=false
waterfall(waits, title="answers join and leave between two steps")

# %% start_at=false
speed["continuous"] = {n: await tokens_per_second(continuous.complete.remote, n) for n in (1, 4, 16)}
bars(by_callers(speed), y="tokens per second", title="the same model on the same hardware")

# %% [markdown]
# The seven may pay for it: compare where their bars end. Between two steps there is more to do than in `generate`, and a step of so
# small a model takes hardly longer than that. A step of a large model does. And callers seldom come as one full batch.
#
# ### Exercise 3: join and leave at each token
#
# Write a class `Loop(step, room)`. `await extend(prompt, count)` returns a list of `count` new tokens. `await step(sequences)` gets
# lists of tokens, each a prompt and what has been added to it, and returns the next token of each, in the same order.
#
# - All sequences go into one call, but no more than `room`. The others wait, and join in the order in which they came.
# - Whoever comes joins at the next step that has room. Whoever has all tokens leaves at once, and so does a caller that is cancelled.
# - One `step` runs at a time, and none while nobody asks.
# - If a `step` fails, the callers that took part in it get the error. All others get their tokens.


# %% exercise="12.3"
class Loop:
    # solution (about 31 lines)
    def __init__(self, step, room):
        self.step, self.room = step, room
        self.runs = []  # those under way first, then those that wait
        self.task = None

    async def extend(self, prompt, count):
        done = asyncio.get_running_loop().create_future()
        self.runs.append((list(prompt), len(prompt) + count, done))
        if self.task is None:
            self.task = asyncio.create_task(self.work())
        sequence = await done
        return sequence[len(prompt) :]

    async def work(self):
        while self.runs:
            for sequence, length, done in self.runs:
                if len(sequence) >= length and not done.done():
                    done.set_result(sequence)
            self.runs = [run for run in self.runs if not run[2].done()]
            if under_way := self.runs[: self.room]:
                await self.advance(under_way)
        self.task = None

    async def advance(self, under_way):
        try:
            tokens = await self.step([list(sequence) for sequence, *_ in under_way])
            for (sequence, *_), token in zip(under_way, tokens, strict=True):
                sequence.append(token)
        except Exception as error:
            for *_, done in under_way:
                if not done.done():
                    done.set_exception(error)

    # starter
    # def __init__(self, step, room):
    #     self.step, self.room = step, room
    #
    # async def extend(self, prompt, count):
    #     return ...
    # end


# %%
check("12.3", Loop)

# %% [markdown]
# ## Tokens on their way
#
# A person reads a few words per second, and need not wait for the last one. A handle with `stream=True` calls an async
# generator, and passes on each value as it comes. Here four callers read 60 tokens each. When does the very first token arrive, and
# when the very last?

# %%
guess = {"first": ..., "last": ...}


# %%
async def arrivals(handle, tokens=60):
    began, times = time.perf_counter(), []
    async for _ in handle.options(stream=True).stream.remote(question, tokens):
        times.append(1000 * (time.perf_counter() - began))
    return times


# %% start_at=false
streams = await asyncio.gather(*(arrivals(continuous) for _ in range(4)))
compare(guess, {"first": min(times[0] for times in streams), "last": max(times[-1] for times in streams)}, "ms")

# %% start_at=false
marks({f"caller {number}": times for number, times in enumerate(streams, start=1)}, title="four streams of one replica")

# %% [markdown]
# All four advance together, because each step makes one token for each of them.
#
# The deployment of the service looks like this. It knows neither FastAPI nor Ray, and holds several models, because PyTorch itself
# takes more memory than a small model. `aclosing` ends the model's work as soon as the reader leaves, which makes room in the batch.

# %%
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from workshop.contracts.generator import Activity, Chunk, Completion, GeneratorCard, Prompt


# %% mirrors="workshop.deployments.language_models:LanguageModelsDeployment"
class LanguageModelsDeployment:
    def __init__(self, sources: Mapping[str, str], cache_tokens: int | None = None) -> None:
        # Only a replica needs PyTorch; code that only refers to this class does not.
        from workshop.models.language_model import LanguageModel

        self._models = {name: LanguageModel.load(source, name, cache_tokens) for name, source in sources.items()}

    async def complete(self, model: str, prompt: Prompt) -> Completion:
        return await self._models[model].complete(prompt)

    async def stream(self, model: str, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        async with aclosing(self._models[model].stream(prompt)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def card(self, model: str) -> GeneratorCard:
        return await self._models[model].card()

    async def activity(self, model: str) -> Activity:
        return await self._models[model].activity()

    def __del__(self) -> None:
        """Serve calls this when the replica stops: the models' threads would keep its process alive."""
        for model in getattr(self, "_models", {}).values():
            model.close()


# %% [markdown]
# ## A card for two
#
# The replica that runs now has reserved half a card. Ray keeps the books: how many cards there are, and what is left.

# %% start_at=false
ray.cluster_resources()["GPU"], ray.available_resources().get("GPU", 0)


# %% [markdown]
# Three replicas of this class ask for a third of a card each. A call returns the replica's id, and the card that Ray has given to it.
# Are those three cards, or one?


# %%
class WhichCard:
    async def ask(self):
        [card] = ray.get_runtime_context().get_accelerator_ids()["GPU"]
        return serve.get_replica_context().replica_id.unique_id, f"card {card}"


# %%
guess = ...

# %% start_at=false
serve.delete("model")
third = {"num_replicas": 3, "ray_actor_options": {"num_gpus": 0.33, "num_cpus": 0.1}}
which = serve.run(serve.deployment(WhichCard).options(**third).bind(), name="which", route_prefix=None)

# %% start_at=false
given = dict([await which.ask.remote() for _ in range(30)])
compare(guess, len(set(given.values())), "cards")
given, ray.available_resources().get("GPU", 0)

# %% [markdown]
# All three got the same card, and the books say that 0.01 of it is left. But nothing divides the card itself. Each replica
# may take all of its memory, and then the next one that needs some fails. A fraction is a promise, and you have to keep it.
#
# A fourth replica has no room. It stays in the state STARTING for as long as the others hold the card:

# %% start_at=false
four = serve.deployment(WhichCard).options(**{**third, "num_replicas": 4}).bind()
serve.run_many([serve.RunTarget(four, name="which", route_prefix=None)], wait_for_applications_running=False)

# %% start_at=false
from workshop.lab.serve_panel import replica_states

await asyncio.sleep(5)
dict(replica_states("WhichCard", "which"))

# %% [markdown]
# A language model needs memory for its weights and for its cache: a few numbers, called keys and values, for each token of every prompt
# and answer under way. The size of the weights is given. You choose the size of the cache, and so how many answers fit.
#
# ### Exercise 4: how many tokens fit?
#
# `cache_tokens(memory, share, weights, layers, heads, size, width)` returns how many tokens fit into a replica's cache. The card has
# `memory` bytes, and the replica may use a fraction of them, `share`, such as 0.5. A tenth of what it may use stays free, for what a
# step computes. The weights take `weights` bytes, and the rest is for the cache. Each token has, for each of the `layers` and each of
# their `heads`, a key and a value of `size` numbers with `width` bytes each.
#
# Return an `int`, rounded down. If the weights do not fit, it is 0.


# %% exercise="12.4"
def cache_tokens(memory, share, weights, layers, heads, size, width):
    # solution (about 3 lines)
    free = 0.9 * share * memory - weights
    per_token = 2 * layers * heads * size * width
    return max(0, int(free // per_token))
    # starter
    # return ...
    # end


# %%
check("12.4", cache_tokens)

# %% [markdown]
# A model with eight billion parameters in half precision has 16 GB of weights. With 32 layers of eight heads of 128 numbers, a token
# takes 128 KiB of its cache. If two such models share a card with 80 GB, their caches hold:

# %%
GB = 10**9
each = int((0.9 * 0.5 * 80 * GB - 16 * GB) // (2 * 32 * 8 * 128 * 2))
{"tokens": each, "answers of 1000 tokens": each // 1000}

# %% [markdown]
# By default, the cache of a model takes most of the memory that is free when it starts, and too little is left for a second model.
# With `WORKSHOP_MODEL_CACHE_TOKENS`, the cache of each of the service's models holds that many tokens.
#
# ## Quiz
#
# **1.** A card is 100 % busy, says its driver, and makes 40 tokens per second for one caller. Is it full?
# <details><summary>Answer</summary>Not necessarily. Busy means that something runs on it at any moment. With sixteen callers in a batch,
# it is as busy and makes many more tokens.</details>
#
# **2.** Answers have between 5 and 500 tokens, and you batch with <code>@serve.batch</code>. What do most callers wait for?
# <details><summary>Answer</summary>For the longest answer of their batch. If another batch was under way when they came, for the
# longest answer of that one, too.</details>
#
# **3.** Two replicas have <code>num_gpus=0.5</code>, and the second one fails with "out of memory". Why did Ray allow it?
# <details><summary>Answer</summary>Ray counts reservations. It does not limit what a process takes. Probably the first replica has
# taken more than its half, or the second one needs more.</details>
#
# **4.** A deployment reserves a GPU, and the machine has none. What happens?
# <details><summary>Answer</summary>On Ray in general, its replica waits until a machine with a GPU joins. The Ray that this service starts
# pretends to have one, and the model runs on the CPU.</details>
#
# **5.** A reader closes its browser in the middle of an answer. Why does it matter on a card?
# <details><summary>Answer</summary>Its sequence takes a place in each step, and memory for its cache. If nobody ends it, others wait
# for a place that is used for nobody.</details>
#
# ## Recap
#
# | question | answer | in the service |
# |---|---|---|
# | which device? | the card if there is one, by the same code | `LanguageModel.load` |
# | why batch? | weights are read once per step, for all | `BatchLoops` |
# | what if lengths differ? | pad on the left, or need no padding | continuous batching |
# | what if answers differ? | join and leave at each token | continuous batching |
# | when does a reader see something? | at the first token | `stream`, `options(stream=True)` |
# | who shares a card? | replicas with fractions, each keeping its promise | `gpus: 0.5`, `model_cache_tokens` |
#
# A card pays when it is full, and it is filled by many answers that come and go. Lesson 13 puts new models on it, without anybody
# noticing.
#
# ## Tear-down

# %%
stop_all()
stop_serve()
