"""A small BERT that classifies sentences; nothing is downloaded."""

import torch
from transformers import AutoModelForSequenceClassification, BertConfig

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 16,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "num_labels": 2,
}


def loss(model, **batch):
    """Return the loss that the model computes itself."""
    return model(**batch).loss


def batches(count):
    """Yield sentences of up to 16 tokens, whose first token is their class."""
    random = torch.Generator().manual_seed(1)
    for _ in range(count):
        tokens = torch.randint(2, 64, (16, 16), generator=random)
        labels = torch.randint(2, (16,), generator=random)
        tokens[:, 0] = labels
        lengths = torch.randint(4, 17, (16, 1), generator=random)
        mask = (torch.arange(16) < lengths).long()
        yield {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def main():
    """Train for twenty steps and return the last loss."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(BertConfig(**SIZES)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.002)
    for batch in batches(20):
        optimizer.zero_grad()
        value = loss(model, **batch)
        value.backward()
        optimizer.step()
    return float(value.detach())


if __name__ == "__main__":
    print(f"loss {main():.3f}")
