"""A classifier, trained by Lightning."""

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mpcompile.lightning import MPCompilePrecision


class Classifier(pl.LightningModule):
    """Two layers with a norm between them."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(16, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 4)
        )

    def training_step(self, batch, _):
        """Return the loss of one batch."""
        x, y = batch
        loss = nn.functional.cross_entropy(self.network(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        """Train everything with AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def main():
    """Train for three epochs and return the last loss."""
    pl.seed_everything(0)
    x = torch.randn(64, 16)
    data = DataLoader(TensorDataset(x, x[:, :4].argmax(1)), batch_size=16)
    trainer = pl.Trainer(
        max_epochs=3,
        gradient_clip_val=1.0,
        plugins=MPCompilePrecision(),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(), data)
    return float(trainer.callback_metrics["loss"])


if __name__ == "__main__":
    print(f"loss {main():.3f}")
