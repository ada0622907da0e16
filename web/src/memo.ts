// Draw a component again only when its properties changed, by a comparison of its own.
import { Component, type FunctionComponent } from "preact";

export function memo<P extends object>(draw: FunctionComponent<P>, same: (a: P, b: P) => boolean) {
  return class extends Component<P> {
    override shouldComponentUpdate(next: P): boolean {
      return !same(this.props as P, next);
    }
    render() {
      return draw(this.props as never, undefined as never);
    }
  };
}
