"""Each person's mean age, for R in closed form by the years within a person."""

import torch
from torch import Tensor

import dal
from training.recipe import Recipe
from utils import UserError

FEW_PEOPLE = 50  # seen at two ages: fewer carry hardly a direction of ageing
LITTLE = 0.25  # of the variance of age within people


def person_means(recipe: Recipe, labels, ages, people: int) -> Tensor | None:
    """Mean age variates (people, K) of each person's faces; None if the recipe does not need them.

    `labels` (N,) and `ages` (N,) in years are those of all faces of training. Says on how many
    people R rests, and warns if they are few or differ little in age within themselves.

    Raises: UserError if nobody is seen at two ages.
    """
    if recipe.factorization == 'learned' or not recipe.within_person:
        return None
    z, labels = dal.age_variates(torch.as_tensor(ages), recipe.age_powers), torch.as_tensor(labels)
    means = dal.person_means(z, labels, people)
    within = z - means[labels]
    seen_twice = len(labels[within.abs().amax(1) > dal.NOTHING].unique())
    if not seen_twice:
        raise UserError(
            'within_person: nobody in the training set is seen at two ages; '
            '--set within_person=False takes out the age between people'
        )
    print(f'R in closed form rests on {seen_twice} people seen at two ages or more')
    if seen_twice < FEW_PEOPLE:
        print(
            f'warning: {seen_twice} people are few for R in closed form: a map from more people '
            'erases more of the age'
        )
    if (share := within[:, 0].var() / z[:, 0].var()) < LITTLE:
        print(
            f'warning: {share:.0%} of the variance of age lies within people: within_person '
            'takes out no more; --set within_person=False goes by the ages as they are'
        )
    return means
