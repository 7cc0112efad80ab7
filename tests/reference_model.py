"""What transformers itself says: the truth that served output is compared with."""

from pathlib import Path


class ReferenceModel:
    """A model computed by `transformers`' own `generate`, in fp32."""

    def __init__(self, path: Path) -> None:
        # Seconds that only the tests pay which compare with it.
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._torch = torch
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)

    def chat_prompt(self, question: str) -> list[int]:
        """What a chat's first question is for the model."""
        messages = [{"role": "user", "content": question}]
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def greedy(self, prompt: list[int], max_tokens: int) -> list[int]:
        torch = self._torch
        with torch.inference_mode():
            output = self._model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=max_tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return [int(token) for token in output[0, len(prompt) :]]

    def mean_logprob(self, prompt: list[int], output: list[int]) -> float:
        """Of the output's tokens, each after the prompt and those before it."""
        torch = self._torch
        with torch.inference_mode():
            logits = self._model(torch.tensor([prompt + output])).logits[0]
        logprobs = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
        return float(logprobs[range(len(output)), output].mean())
