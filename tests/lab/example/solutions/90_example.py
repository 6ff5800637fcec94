# ---
# jupyter:
#   workshop:
#     ray: true
# ---

# %% [markdown]
# # 90 An example
#
# Runs in {{ minutes }}, {{ memory }} at most. Braces such as {minutes} stay.

# %%
import asyncio

greeting = "hello"


# %% exercise="90.1"
async def shout(text):
    # solution (about 2 lines)
    await asyncio.sleep(0)
    return text.upper()
    # starter
    # await asyncio.sleep(0)
    #
    # return ...
    # end


# %%
# copy the text first
loud = await shout(greeting)
loud

# %% tags=["raises-exception"]
raise ValueError("this cell is meant to fail")

# %% exercise="90.2"
# solution (about 1 line)
limit = 10
# starter
# limit = ...
# end

# %%
# %time sum(range(10))
print("printed", loud, limit)
# ruff: noqa: F704, PLE1142, B018
