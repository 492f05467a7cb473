"""The one question a teacher is asked: what should have been said here?"""

from abc import ABC, abstractmethod

from tutelage.core.records import Rollout, TokenBatch
from tutelage.core.targets import Target
from tutelage.text.collate import num_tokens


class Teacher(ABC):
    """Whoever says, for each completion token of a batch, what the student should have said."""

    @abstractmethod
    def score(self, batch: TokenBatch) -> Target:
        """The teacher's answer, one row for each of the batch's N completion tokens.

        Row n answers for `batch.labels[n]`: it is read off the position
        `batch.teacher.predicts[n]`, through the teacher's own prompt. A teacher answers in
        evaluation mode and without gradients, whatever mode the student is in, draws nothing from
        the global random generators and keeps no reference to the batch. Two questions about the
        same batch have the same answer until the teacher's weights change.

        Returns:
            A target that carries `batch.labels`, on the device of the batch.

        Raises:
            DataError: the batch lacks what this teacher needs.
            NumericsError: the teacher's answer is not finite.
        """

    def length(self, rollout: Rollout) -> int:
        """Tokens of the row for whoever of student and teacher reads more of them.

        What a micro-batch may hold is counted in these. The same row has the same length always.
        """
        return num_tokens(rollout)
