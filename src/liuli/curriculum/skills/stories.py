"""stub"""
from liuli.curriculum.draw import Draw
from liuli.curriculum.items import Item, asked


def tell_story(draw: Draw) -> Item:
    return asked("Tell me a story." if not draw.zh else "讲个故事。", story_text(draw), check="story", )
def story_text(draw: Draw) -> str:
    return "Once upon a time there was a fox. It lived well. It ran. It slept."
def tell_named(draw: Draw) -> Item:
    return tell_story(draw)
def distinct_sentences(language: str) -> int:
    return 4
