"""Fine-tuning experiments: data sets, training runs, results. Behind the command ``attrdrop finetune``."""
