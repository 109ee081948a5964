"""A source of samples that a test has made."""

from train.evaluation.samples import Source


class Given(Source):
    """Samples at hand."""

    def __init__(self, *samples):
        self.samples, self.description = samples, "given"
        self.ids, self.scenes = [s.sample_id for s in samples], [s.scene for s in samples]

    def __getitem__(self, number):
        return self.samples[number]
