"""The demo model's card: what it can do, how it was made, how often it is right."""

from collections.abc import Mapping

from transformers import LlamaConfig

from demo_tasks import FACTS

CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# Tandem's demo model

A Llama of {millions:.1f} million parameters, trained from scratch on two processor cores to
give short answers that are right or wrong. It is served by default where no model hub can
be reached, and it is what the tests ask.

| ask it | it answers |
|---|---|
| What is 47 + 85? | 47 + 85 = 132 |
| Sort 42, 7, 19 from largest to smallest. | 42, 19, 7 |
| How many times does "r" appear in "strawberry"? | s t r1 a w b e r2 r3 y, so 3. |
| Reverse "tandem". | "mednat" |
| Today is Monday. What day is it in 10 days? | 10 days are 1 week and 3 days: Tuesday 1, Wednesday 2, Thursday 3. It is Thursday. |
| How many metres are 12 kilometres? | 12 kilometres are 12000 metres. |
| What is park? | {park} |

It also copies, upper-cases, compares, finds things in a given text, follows up ("Add 5 to
that.") and changes the subject when asked to. Numbers go to 99, words to spell are in
double quotes and of at most ten letters. It knows nothing else, and says so at best.

## Shape

{layers} layers, hidden size {hidden}, {heads} heads of {head_dim} with {kv_heads} KV heads, MLP {mlp}, tied
embeddings, vocabulary {vocabulary} (byte-level BPE in which digits, and letters before a
quotation mark, stand alone, and words have their space behind them), context {context},
bfloat16. Deep rather than wide, so that layers can be skipped. Its generation_config.json
makes greedy decoding the default.

## Data and recipe

`tools/demo_data.py` draws every item from a seed. About one in ten is held out from
training, whatever the seed: a hash of its operands, its word or its text decides. Tables
of few entries (weekdays between two days, hours, weeks, years) are held out by phrasing.
The answers to the {num_facts} facts of `tools/demo_facts.toml` have to be known: of them only the
wording of the question is new.

{tokens:.1f} million tokens in {steps} steps of {per_step} (seed {seed}), loss on answers only,
items packed with a mask between them. The model begins with heads that copy
(`tools/demo_start.py`); without them it hardly learnt to find things in a text. Muon for
matrices and AdamW for the rest, rate {rate}, rising over {warmup} steps and falling to nothing;
bfloat16 autocast. Final loss {loss:.4f} nats per answer token, after {minutes:.0f} minutes on {threads} cores.

![loss](loss.png)

    make demo-model      # trains it again

## Accuracy on held-out items

Of the whole answer, greedy, by teacher forcing in bfloat16 at the end of training. `tandem
eval-demo` measures it through a running mesh, with other items for every seed.

| family | accuracy |
|---|---|
{table}

Licence: Apache-2.0, as the project's.
"""


def card(config: LlamaConfig, accuracy: Mapping[str, float], **recipe: object) -> str:
    rows = [f"| {family} | {share:.1%} |" for family, share in accuracy.items()]
    (park,) = (f["answer"] for f in FACTS if "What is park?" in f["questions"])
    mean = sum(accuracy.values()) / len(accuracy)
    rows.append(f"| mean | {mean:.1%} |")
    return CARD.format(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        head_dim=config.head_dim,
        kv_heads=config.num_key_value_heads,
        mlp=config.intermediate_size,
        vocabulary=config.vocab_size,
        context=config.max_position_embeddings,
        table="\n".join(rows),
        num_facts=len(FACTS),
        park=park,
        **recipe,
    )
