"""Whether the ages of a training set carry R in closed form."""

import numpy as np

import dal
from training.recipe import Recipe
from utils import UserError

FEW_PEOPLE = 50  # seen at two ages: fewer carry hardly a direction of ageing
LITTLE = 0.25  # of the variance of age within people


def check_for_eraser(recipe: Recipe, labels: np.ndarray, ages: np.ndarray) -> None:
    """Says on how many people R in closed form rests, and warns if they are few; labels (N,) and
    ages (N,) in years are those of all faces of training.

    Raises: UserError if it goes by the years within people and nobody is seen at two ages.
    """
    if recipe.factorization == 'learned':
        return
    people, person = np.unique(labels, return_inverse=True)
    means = np.bincount(person, ages) / np.bincount(person)
    within = ages - means[person]
    seen_twice = len(np.unique(person[np.abs(within) > dal.NOTHING]))
    if recipe.within_person and not seen_twice:
        nobody = 'within_person: nobody in the training set is seen at two ages'
        raise UserError(f'{nobody}; --set within_person=False takes out the age between people')
    seen = f'{seen_twice} of them seen at two ages or more'
    print(f'R in closed form rests on {len(people)} people, {seen}')
    rests_on = seen_twice if recipe.within_person else len(people)
    if rests_on < FEW_PEOPLE:
        few = f'warning: {rests_on} people are few for R in closed form: a map from more people '
        print(f'{few}erases more of the age')
    share = within.var() / max(ages.var(), 1e-9)
    if recipe.within_person and share < LITTLE:
        little = f'warning: {share:.0%} of the variance of age lies within people: within_person'
        remedy = '--set within_person=False goes by the ages as they are'
        print(f'{little} takes out no more; {remedy}')
