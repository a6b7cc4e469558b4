"""What the run that the tests of the command share is made of: a file of one's own, its prompt, few rows and steps."""

from pathlib import Path

REVIEWS = Path(__file__).resolve().parents[1] / "examples" / "reviews.csv"
OWN = ["--prompt", "{review} It was about a", "--labels", "film,book,hotel", "--label_column", "kind"]
SIZES = "--num_train 32 --num_dev 16 --num_test 12".split()
SHORT = "--max_steps 4 --save_steps 2 --learning_rate 1e-3 --seed 1 --use_cpu true --disable_tqdm true".split()
