"""Controls, experiments and statistics: what the method is compared with, and what is measured."""
