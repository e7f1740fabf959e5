"Prompts: a wording is filled or refused, and what it leaves open is refused by name."
import numpy as np, pytest

from papers_lib.rec.prompts import Template, fill


def test_fields_are_those_of_source_and_target_each_once():
    assert Template('9-9', 'a {user}', 'b').fields == ('user',)
    assert Template('a', '{name} and {title} and {name}', '{title} {rating}').fields == ('name', 'title', 'rating')


def test_numbers_of_arrays_are_numbers():
    t = Template('a', 'user_{user}', '{star}')
    assert fill(t, dict(user=np.int64(7), star=np.float32(4))) == ('user_7', '4')
    for told in (dict(user=np.float64(7), star=4), dict(user=7, star=np.nan)):
        with pytest.raises(ValueError, match='template a: '): fill(t, told)


def test_a_target_must_be_among_the_candidates_where_both_are_asked():
    among = dict(candidates=['1', '2'], target='3')
    asks = Template('a', '{candidates}', '{target}')
    with pytest.raises(ValueError, match="target='3': must be among"): fill(asks, among)
    assert fill(Template('a', '{candidates} ?', ''), among) == ('1 , 2 ?', '')
